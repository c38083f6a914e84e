"""The command line: its verbs, one file each. Heavy imports happen inside the verb that needs them.

What a verb prints and how it fails is `swarmd.cli.console`'s.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

import swarmd
from swarmd.cli import console
from swarmd.cli.bench import bench
from swarmd.cli.chat import chat
from swarmd.cli.demo import demo
from swarmd.cli.drain import drain
from swarmd.cli.generate import generate
from swarmd.cli.serve import serve
from swarmd.cli.status import status
from swarmd.cli.version import version

app = typer.Typer(
    name="swarmd",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for verb in (serve, generate, chat, status, drain, demo, bench, version):
    app.command(verb.__name__)(verb)

# Typer keeps its own copy of click or uses the installed one, by version; its bases are the same.
_ClickError: Any = typer.BadParameter.__mro__[2]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"swarmd {swarmd.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Run one large language model across many machines."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    try:
        code = app(args=list(arguments) or ["--help"], prog_name="swarmd", standalone_mode=False)
    except _ClickError as error:
        message = f"{error.format_message()}{_hint(error)}"
        console.report("UsageError", message, as_json="--json" in arguments)
        return console.MISUSED
    except (typer.Abort, KeyboardInterrupt):
        return console.INTERRUPTED
    return int(code or 0)


def _hint(error: Any) -> str:
    return f" (see {error.ctx.command_path} --help)" if getattr(error, "ctx", None) else ""


def main() -> NoReturn:
    """Entry point of the `swarmd` command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal that cannot show a character shows a question mark; it is no failure.
            stream.reconfigure(errors="replace")
    if hasattr(sys.stdin, "reconfigure"):
        # As with arguments: what is not UTF-8 is refused where it is used, with the place.
        sys.stdin.reconfigure(errors="surrogateescape")
    _exit(run(sys.argv[1:]))


def _exit(code: int) -> NoReturn:
    """End the process, whatever threads still run.

    One may wait for a hub that is silent, or compute: the interpreter would wait for the first
    and end beneath the second.
    """
    if threading.active_count() > 1:
        with contextlib.suppress(OSError):  # as when a pipe's reader has gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
