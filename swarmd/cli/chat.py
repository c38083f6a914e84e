"""`swarmd chat`: a conversation with the model's own chat template, kept while the verb runs.

The template is rendered by the node; the history goes to it whole each time.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from swarmd.cli import console
from swarmd.cli.generate import (
    KeepAlive,
    MaxTokens,
    Model,
    Seed,
    Temperature,
    TopK,
    TopP,
    stats_line,
)
from swarmd.core.errors import SwarmdError

if TYPE_CHECKING:
    from swarmd.client import Client
    from swarmd.client.request import GenerateArguments
    from swarmd.core.results import Completion, KeptSession

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) leaves, Ctrl-C ends an answer"


class Conversation:
    """The messages so far, and how to ask for the next one."""

    def __init__(self, client: Client, system: str, arguments: GenerateArguments) -> None:
        self._client = client
        self._system = [{"role": "system", "content": system}] if system else []
        self._arguments = arguments
        self._kept: KeptSession | None = None
        self.messages = list(self._system)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._system)
        self._kept = None

    def ask(self, question: str, *, quiet: bool) -> Completion:
        """Stream the answer and remember both; after an error, neither."""
        asked = [*self.messages, {"role": "user", "content": question}]
        arguments: GenerateArguments = {**self._arguments, "continue_from": self._kept}
        with self._client.generate(asked, **arguments) as stream:
            for token in stream:
                if not quiet:
                    console.write(token.text)
            result = stream.result
        self._kept = result.kept
        self.messages = [*asked, {"role": "assistant", "content": result.text}]
        return result


@console.verb
def chat(
    node: console.NodeOption = console.DEFAULT_NODE,
    model: Model = "",
    system: Annotated[str, typer.Option("--system", help="System message.")] = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    seed: Seed = None,
    keep_alive: KeepAlive = 0.0,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print speed and route to stderr.")
    ] = False,
    timeout: console.TimeoutOption = None,
    as_json: console.JsonOption = False,
) -> int | None:
    """Talk with the model; what was said is kept."""
    from swarmd.client import Client

    console.tell_waits()
    arguments: GenerateArguments = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "timeout": timeout,
        "keep_alive": keep_alive,
    }
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401  (line editing for input())

        print(HELP, file=sys.stderr)
    with Client(node) as client:
        talk = Conversation(client, system, arguments)
        while (line := _question(interactive)) is not None and line != "/quit":
            if line == "/reset":
                talk.reset()
            elif line.startswith("/"):
                print(HELP, file=sys.stderr)
            elif line and not _turn(talk, line, as_json=as_json, stats=stats) and not interactive:
                return console.FAILED
    return None


def _question(interactive: bool) -> str | None:
    """Return the next line, stripped; None at the end of the input."""
    try:
        return input("> " if interactive else "").strip()
    except EOFError:
        if interactive:
            print(file=sys.stderr)
        return None


def _turn(talk: Conversation, line: str, *, as_json: bool, stats: bool) -> bool:
    """Ask once; return whether an answer came. An interrupt ends the answer, not the verb."""
    try:
        result = talk.ask(line, quiet=as_json)
    except SwarmdError as error:
        console.fail(error, as_json=as_json)
        return False
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        console.write("\n")
        return False
    if as_json:
        console.print_json(result.as_dict())
    else:
        console.write("\n")
    if stats:
        print(stats_line(result), file=sys.stderr)
    return True
