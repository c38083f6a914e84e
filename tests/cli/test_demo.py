"""What the demo tells: the outcome in words, and how to call the command from here."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from swarmd.cli.demo import Outcome, _command
from swarmd.core.results import Completion, Coordinator, RouteHop
from swarmd.core.span import Span

HOPS = tuple(
    RouteHop(f"{n:040x}", f"127.0.0.1:{n}", Span(4 * n, 4 * n + 4), 100 + n) for n in range(2)
)
DONE = Completion(
    text="x" * 60,
    token_ids=tuple(range(60)),
    finish_reason="length",
    num_prompt_tokens=3,
    ttft_s=0.1,
    tokens_per_s=50.0,
    repairs=0,
    resumes=0,
    max_stall_s=0.02,
    route=HOPS,
    session="00",
    coordinator=Coordinator(HOPS[0].peer, HOPS[0].address, 100),
    seed=1,
)
HELD = Outcome(DONE, replace(DONE, repairs=1, max_stall_s=0.3), killed_pid=99, tokens_before=30)


def test_a_demo_that_held_says_what_happened() -> None:
    assert HELD.held
    assert HELD.summary().split("\n") == [
        "",
        "The text is the same as that of an undisturbed run.",
        "  tokens      60, of them 30 before the kill",
        "  speed       50.0 tokens/s (undisturbed 50.0)",
        "  hops        2: 127.0.0.1:0 [0:4] -> 127.0.0.1:1 [4:8]",
        "  repairs     1",
        "  worst stall 300 ms (undisturbed 20 ms)",
    ]


@pytest.mark.parametrize(
    "outcome",
    [
        replace(HELD, disturbed=DONE),
        replace(HELD, disturbed=replace(HELD.disturbed, text="y" * 60)),
        replace(HELD, disturbed=replace(HELD.disturbed, token_ids=tuple(range(1, 61)))),
        replace(HELD, killed_pid=HOPS[1].pid),
        replace(HELD, tokens_before=5),
        replace(HELD, tokens_before=55),
    ],
    ids=["no-repair", "other-text", "other-ids", "survivor", "too-early", "too-late"],
)
def test_a_demo_that_shows_less_has_not_held(outcome: Outcome) -> None:
    assert not outcome.held


def test_the_command_is_named_as_it_can_be_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installed = tmp_path / "swarmd"
    installed.write_text("#!/bin/sh\n")
    installed.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for called, name in (
        (str(installed), "swarmd"),
        (".venv/bin/swarmd", ".venv/bin/swarmd"),
        ("/lib/swarmd/cli/main.py", "swarmd"),
    ):
        monkeypatch.setattr(sys, "argv", [called, "demo"])
        assert _command() == name
