"""What every verb does alike: options, output for people and for machines, errors, exit codes.

0 is done, 1 a failure, 2 a mistake of the caller, 130 an interrupt, 141 a reader that went away,
128 + n signal n where it is not left to the system.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ParamSpec

import typer

from swarmd.cli.endings import Terminated
from swarmd.core.config import GRPC_PORT
from swarmd.core.errors import SwarmdError, UsageError

P = ParamSpec("P")

FAILED, MISUSED, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141

NodeOption = Annotated[
    str,
    typer.Option(
        "--node",
        metavar="HOST:PORT,...",
        envvar="SWARMD_NODE",
        help="Node of the swarm; several with commas, in case that one does not answer.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", help="Give up after this long.")
]
DEFAULT_NODE = f"127.0.0.1:{GRPC_PORT}"


class _Notices(logging.Handler):
    """What the client library has to tell people goes to stderr, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"swarmd: {' '.join(record.getMessage().split())}", file=sys.stderr)


def tell_waits() -> None:
    """From now on say on stderr when the client waits for a node that is loading."""
    logger = logging.getLogger("swarmd.client")
    if not any(isinstance(handler, _Notices) for handler in logger.handlers):
        logger.addHandler(_Notices(logging.INFO))
        logger.setLevel(logging.INFO)


def verb(function: Callable[P, int | None]) -> Callable[P, int | None]:
    """Turn what may go wrong in a verb into a line on stderr and an exit code.

    A verb that has an argument `as_json` prints its error as an object on stdout as well.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> int | None:
        try:
            code = function(*args, **kwargs)
            sys.stdout.flush()
            return code
        except SwarmdError as error:
            return fail(error, as_json=bool(kwargs.get("as_json")))
        except BrokenPipeError:
            # The interpreter flushes once more at exit, and must find somebody to write to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return PIPE_CLOSED
        except KeyboardInterrupt as told:
            return told.code if isinstance(told, Terminated) else INTERRUPTED

    return run


def fail(error: Exception, *, as_json: bool) -> int:
    """Report an error and return the exit code."""
    usage = isinstance(error, UsageError)
    name = type(error).__name__ if isinstance(error, SwarmdError) else "UsageError"
    report(name, _one_line(error), as_json=as_json)
    return MISUSED if usage else FAILED


def report(name: str, message: str, *, as_json: bool) -> None:
    """Write one line to stderr; with `as_json` also `{"error": ...}` to stdout."""
    print(f"swarmd: {message}", file=sys.stderr)
    if as_json:
        print_json({"error": {"type": name, "message": message}})


def print_json(value: Mapping[str, Any]) -> None:
    """Print one object on one line."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def write(text: str) -> None:
    """Stream text to stdout; a terminal gets no control characters, which could steer it."""
    if sys.stdout.isatty():
        text = "".join(c for c in text if c.isprintable() or c in "\n\t")
    sys.stdout.write(text)
    sys.stdout.flush()


def _one_line(error: Exception) -> str:
    notes = getattr(error, "__notes__", [])
    return " ".join("; ".join([str(error), *notes]).split())
