"""`swarmd demo`: a whole swarm on this machine, a node killed in mid-sentence, and the same text.

The daemons are real ones (`swarmd.cli.local_swarm`), the model is the one in the package.
"""

from __future__ import annotations

import functools
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

import swarmd
from swarmd.cli import console
from swarmd.cli.endings import Terminated
from swarmd.core.errors import SwarmdError

if TYPE_CHECKING:
    from swarmd.cli.local_swarm import LocalSwarm
    from swarmd.client import Client
    from swarmd.client.request import GenerateArguments
    from swarmd.core.results import Completion

SPANS = ("0:3", "3:6", "3:6", "6:8")
PROMPT = "def binary_search(items, target):"
MAX_TOKENS = 120
KILL_AFTER = 40
REQUEST: GenerateArguments = {
    "max_tokens": MAX_TOKENS,
    "ignore_eos": True,
    "temperature": 0.6,
    "top_p": 0.95,
    "seed": 8,
}
"""Greedy, so small a model soon repeats itself. Draws follow from the seed, also in a repair."""
READY_TIMEOUT_S = 120.0
FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "256MiB", "--log-level", "warning")


@console.verb
def demo(
    prompt: Annotated[str, typer.Option("--prompt", help="What the model continues.")] = PROMPT,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the swarm running.")] = False,
    as_json: console.JsonOption = False,
) -> int | None:
    """Start a swarm of four nodes here, kill one while it speaks, and compare the text."""
    from swarmd.cli.local_swarm import LocalSwarm

    began = time.monotonic()
    # With --json, stdout is for the object alone.
    out = sys.stderr if as_json else sys.stdout
    tell = functools.partial(print, file=out, flush=True)
    tell(f"starting {len(SPANS)} nodes on this machine: blocks {', '.join(SPANS)}")
    with LocalSwarm(str(demo_model()), SPANS, flags=FLAGS) as nodes:
        nodes.wait_ready(READY_TIMEOUT_S)
        tell(f"ready after {time.monotonic() - began:.1f} s")
        outcome = _show(nodes, prompt, out)
        if as_json:
            console.print_json(outcome.as_dict())
        else:
            print(outcome.summary())
        if keep:
            tell(_directions(nodes.addresses[0]))
            _wait(nodes)
        else:
            tell(f"\nTo talk to such a swarm: {_command()} demo --keep")
    return 0 if outcome.held else console.FAILED


def demo_model() -> Path:
    """Return the directory of the model in the package. Raises SwarmdError if it is not there."""
    directory = Path(swarmd.__file__).parent / "demo_model"
    if not (directory / "config.json").is_file():
        raise SwarmdError(f"the demo model is missing at {directory}: reinstall swarmd")
    return directory


@dataclass(frozen=True, slots=True)
class Outcome:
    """The undisturbed completion, the disturbed one, and who was killed in between."""

    undisturbed: Completion
    disturbed: Completion
    killed_pid: int
    tokens_before: int

    @property
    def same(self) -> bool:
        return (
            self.undisturbed.text == self.disturbed.text
            and self.undisturbed.token_ids == self.disturbed.token_ids
        )

    @property
    def held(self) -> bool:
        """Whether all of it is true: a hop died, was replaced, and the text did not change."""
        after = len(self.disturbed.token_ids) - self.tokens_before
        enough = min(self.tokens_before, after) >= 20
        survivors = {hop.pid for hop in self.disturbed.route}
        return (
            self.same
            and enough
            and self.disturbed.repairs >= 1
            and self.killed_pid not in survivors
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "held": self.held,
            "same_text": self.same,
            "killed_pid": self.killed_pid,
            "undisturbed": self.undisturbed.as_dict(),
            "disturbed": self.disturbed.as_dict(),
        }

    def summary(self) -> str:
        done, plain = self.disturbed, self.undisturbed
        hops = " -> ".join(f"{hop.address} [{hop.blocks}]" for hop in done.route)
        same = "the same" if self.same else "NOT the same"
        return (
            f"\nThe text is {same} as that of an undisturbed run.\n"
            f"  tokens      {len(done.token_ids)}, of them {self.tokens_before} before the kill\n"
            f"  speed       {done.tokens_per_s:.1f} tokens/s "
            f"(undisturbed {plain.tokens_per_s:.1f})\n"
            f"  hops        {len(done.route)}: {hops}\n"
            f"  repairs     {done.repairs}\n"
            f"  worst stall {done.max_stall_s * 1000:.0f} ms "
            f"(undisturbed {plain.max_stall_s * 1000:.0f} ms)"
        )


def _show(nodes: LocalSwarm, prompt: str, out: TextIO) -> Outcome:
    from swarmd.cli import status
    from swarmd.client import Client

    with Client(nodes.addresses, timeout=60.0) as client:
        if out is sys.stdout:
            status.show(client.status(), as_json=False)
        undisturbed = client.complete(prompt, **REQUEST)
        return _disturb(nodes, client, prompt, undisturbed, out)


def _disturb(
    nodes: LocalSwarm, client: Client, prompt: str, undisturbed: Completion, out: TextIO
) -> Outcome:
    """Stream the same completion once more and kill the middle hop while tokens flow."""
    tokens = client.generate(prompt, **REQUEST)
    say = functools.partial(print, end="", file=out, flush=True)
    say(prompt)
    killed = before = 0
    for count, token in enumerate(tokens, start=1):
        say(token.text)
        if count == KILL_AFTER:
            before, killed = count, tokens.route[1].pid
            nodes.node_of(killed).kill()
            say(f"\n--- kill -9 {killed}, which serves blocks {tokens.route[1].blocks} ---\n")
    say("\n")
    return Outcome(undisturbed, tokens.result, killed, before)


def _directions(node: str) -> str:
    command = _command()
    return (
        "\nThe swarm runs on; Ctrl-C ends it. In another terminal:\n"
        f"  {command} status --node {node}\n"
        f"  {command} generate '{PROMPT}' --node {node}\n"
        f"  {command} chat --node {node}"
    )


def _command() -> str:
    """Return how to call swarmd from here: in a virtual environment it may not be on the path."""
    called = sys.argv[0]
    if Path(called).name != "swarmd" or called == shutil.which("swarmd"):
        return "swarmd"
    return called


def _wait(nodes: LocalSwarm) -> None:
    """Return when the last node has ended, or at Ctrl-C, which is the usual end."""
    try:
        while any(node.alive for node in nodes.nodes):
            time.sleep(0.5)
    except Terminated:
        raise
    except KeyboardInterrupt:
        pass
