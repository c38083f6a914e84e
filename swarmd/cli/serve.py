"""`swarmd serve`: run a node. Its flags are made from the table in `swarmd.core.config`.

Everything after reading the configuration is `swarmd.node.daemon`'s.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import os
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import MISSING, Field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from swarmd.cli import console
from swarmd.cli.progress import LoadProgress
from swarmd.core import options
from swarmd.core.config import KEYS, NodeConfig, env_name, flag_name, load_config
from swarmd.core.errors import SwarmdError

if TYPE_CHECKING:
    from swarmd.node.ready import Ready

log = logging.getLogger("swarmd.serve")


@console.verb
def serve(config: Path | None = None, as_json: bool = False, **flags: Any) -> int | None:
    """Serve blocks of a model to the swarm.

    A flag wins over its environment variable, which wins over the file given with --config.
    """
    from swarmd.node.preflight import cleared

    settings = load_config(flags, os.environ, config)
    log_to_stderr(settings.log_level, os.environ)
    for warning in settings.warnings():
        log.warning(warning)
    progress = LoadProgress()

    def say(ready: Ready) -> None:
        if as_json:
            console.print_json(ready.as_dict())
        else:
            print(ready, flush=True)

    with cleared(settings), closing(progress):
        return int(_daemon(settings).run(settings, say=say, progress=progress))


_NEEDED = ("torch", "transformers", "hivemind")
"""What the base install lacks, asked for before the model is: that may be fine."""
_LEAN_GRPC = "-event_engine_client,-event_engine_listener"
"""Without gRPC's pool of event threads each frame wakes two threads less: a sixth of the CPU that a
token costs a node besides its forward. A version of gRPC that has dropped these switches ignores
them."""


def _daemon(settings: NodeConfig) -> ModuleType:
    """Import the daemon, which takes seconds, unless a look at the model shows it to be in vain."""
    from swarmd.node import preflight

    os.environ.setdefault("GRPC_EXPERIMENTS", _LEAN_GRPC)  # read when gRPC is imported
    try:
        for package in _NEEDED:
            if importlib.util.find_spec(package) is None:
                raise _missing(package)
        preflight.check_model(settings)
        with preflight.uncollected():
            preflight.import_models()
            from swarmd.node import daemon
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "swarmd":
            raise
        raise _missing(package) from None
    return daemon


def _missing(package: str) -> SwarmdError:
    return SwarmdError(
        f"serving needs {package}, which is not installed: pip install 'swarmd[node]'"
    )


class _Stderr(logging.Handler):
    """Writes to what stderr is at the moment: a progress bar stands in for it while it is drawn.

    What cannot be written is lost, as where the terminal is gone: the node goes on.
    """

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError, ValueError):
            print(self.format(record), file=sys.stderr, flush=True)


def log_to_stderr(level: str, env: Mapping[str, str]) -> None:
    """Send swarmd's log there from `level` on, other libraries' from warnings on."""
    handler = _Stderr()
    stamp = "" if env.get("JOURNAL_STREAM") else "%(asctime)s "  # the journal has its own
    handler.setFormatter(logging.Formatter(f"{stamp}%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("swarmd").setLevel(level.upper())


# -- flags from the table ---------------------------------------------------------------------


def _parameter(key: Field[Any]) -> inspect.Parameter:
    help = f"{key.metadata['help']} [env: {env_name(key.name)}]{_default(key)}"
    kind: Any = bool if key.metadata["parse"] is options.flag else str
    if key.name == "model":
        declared: Any = typer.Argument(metavar="MODEL", help=help, show_default=False)
    else:
        metavar = key.metadata["metavar"] or None
        declared = typer.Option(flag_name(key.name), metavar=metavar, help=help)
    return _keyword(key.name, Annotated[kind | None, declared], None)


def _default(key: Field[Any]) -> str:
    if key.default is MISSING or key.default in (None, (), False):
        return ""
    is_size = key.metadata["parse"] is options.size
    return f" [default: {options.format_size(key.default) if is_size else key.default}]"


def _keyword(name: str, annotation: Any, default: object) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


_CONFIG = typer.Option(
    "--config", metavar="FILE", envvar="SWARMD_CONFIG", help="TOML file; see configs/node.toml."
)


def _declare(verb: Any) -> None:
    """Give the verb the parameters that typer reads its flags from."""
    model, *rest = (_parameter(key) for key in KEYS.values())
    config = _keyword("config", Annotated[Path | None, _CONFIG], None)
    as_json = _keyword("as_json", Annotated[bool, *get_args(console.JsonOption)[1:]], False)
    parameters = [model, config, *rest, as_json]
    verb.__signature__ = inspect.Signature(parameters)
    verb.__annotations__ = {p.name: p.annotation for p in parameters}


_declare(serve)
