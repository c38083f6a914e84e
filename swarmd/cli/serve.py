"""`swarmd serve`: run a node. Its flags are made from the table in `swarmd.core.config`.

Everything after reading the configuration is `swarmd.node.daemon`'s.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Annotated, Any

import typer

from swarmd.cli import console
from swarmd.core import options
from swarmd.core.config import KEYS, NodeConfig, env_name, flag_name, load_config
from swarmd.core.errors import SwarmdError


@console.verb
def _serve(**flags: Any) -> int | None:
    """Serve blocks of a model to the swarm.

    A flag wins over its environment variable, which wins over the file given with --config.
    """
    file = flags.pop("config", None)
    config = load_config(flags, os.environ, file)
    for warning in config.warnings():
        console.warn(warning)
    return _daemon()(config)


def _daemon() -> Callable[[NodeConfig], int]:
    try:
        from swarmd.node import daemon
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "swarmd":
            raise
        raise SwarmdError(
            f"serving needs {package}, which is not installed: pip install 'swarmd[node]'"
        ) from None
    return daemon.run


def _parameter(key: Field[Any]) -> inspect.Parameter:
    help = f"{key.metadata['help']} [env: {env_name(key.name)}]{_default(key)}"
    kind: Any = bool if key.metadata["parse"] is options.flag else str
    if key.name == "model":
        declared: Any = typer.Argument(metavar="MODEL", help=help, show_default=False)
    else:
        metavar = key.metadata["metavar"] or None
        declared = typer.Option(flag_name(key.name), metavar=metavar, help=help)
    return _keyword(key.name, Annotated[kind | None, declared])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _default(key: Field[Any]) -> str:
    if key.default is MISSING or key.default in (None, (), False):
        return ""
    is_size = key.metadata["parse"] is options.size
    return f" [default: {options.format_size(key.default) if is_size else key.default}]"


CONFIG = typer.Option(
    "--config", metavar="FILE", envvar="SWARMD_CONFIG", help="TOML file; see configs/node.toml."
)


def _make() -> Callable[..., int | None]:
    """Give the verb the parameters that typer reads its flags from."""
    parameters = [_parameter(key) for key in KEYS.values()]
    parameters.insert(1, _keyword("config", Annotated[Path | None, CONFIG]))
    function: Any = _serve
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return _serve


serve = _make()
