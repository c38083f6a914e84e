"""SIGSTOP to hops and coordinators of a real swarm: how long does a stream stand, and who is back?

Each run stops one process in the middle of a stream for longer than the stream needs, and lets it
run again afterwards. It counts if something was repaired or resumed. The text has to be that of an
undisturbed run, and the process that was stopped has to be free of the session and in everybody's
view again. Prints a line a run and writes the verdict to bench/results.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from kills import BYSTANDER, KILL_AT, LONG_PROMPT, PLACES, PROMPT, SPANS, TOKENS, revive, victim

from swarmd.cli.demo import demo_model
from swarmd.cli.local_swarm import LocalNode, LocalSwarm
from swarmd.client import Client, SyncGeneration
from swarmd.core.results import Completion

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one run."""

    place: str
    phase: str
    exact: bool
    counted: bool
    repairs: int
    resumes: int
    stall_s: float
    undisturbed_stall_s: float
    back_s: float
    """From SIGCONT until it held nothing of the session and everybody saw it serve."""


def main() -> int:
    """Do the runs; 0 if every counted one was exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    flags = ("--dtype", "float32", "--threads", "1", "--kv-memory", "64MiB", "--chunk-size", "64")
    runs: list[Run] = []
    with LocalSwarm(str(demo_model()), SPANS, flags=flags) as nodes:
        bystander = nodes.add(*BYSTANDER)
        while sum(run.counted for run in runs) < options.runs and len(runs) < 2 * options.runs:
            revive(nodes)
            place = PLACES[len(runs) % len(PLACES)]
            phase = "prefill" if (len(runs) // len(PLACES)) % 2 else "decode"
            runs.append(one(nodes, bystander, place, phase, options.seconds))
            print(len(runs), asdict(runs[-1]), flush=True)
    verdict = summary(runs)
    RESULTS.mkdir(exist_ok=True)
    whole = verdict | {"runs": [asdict(r) for r in runs]}
    (RESULTS / "freezes.json").write_text(json.dumps(whole, indent=1) + "\n")
    print(json.dumps(verdict))
    return 0 if verdict["exact"] == verdict["counted"] >= options.runs else 1


def one(nodes: LocalSwarm, bystander: LocalNode, place: str, phase: str, seconds: float) -> Run:
    """One undisturbed and one disturbed run of the same request."""
    prompt = PROMPT if phase == "decode" else LONG_PROMPT
    redirect = place == "first and coordinator"
    first = [] if redirect else [bystander.address]
    known = first + [a for a in nodes.addresses if a not in first]
    with Client(known, timeout=120.0) as client:
        # Each with a salt of its own: what another one left behind would spare it the prefill.
        plain = client.complete(
            prompt,
            max_tokens=TOKENS,
            ignore_eos=True,
            allow_redirect=redirect,
            cache_salt=secrets.token_hex(8),
        )
        tokens = client.generate(
            prompt,
            max_tokens=TOKENS,
            ignore_eos=True,
            allow_redirect=redirect,
            cache_salt=secrets.token_hex(8),
        )
        frozen, at = Freezer(nodes, place).run(tokens, plain if phase == "prefill" else None)
        done = tokens.result
    time.sleep(max(0.0, at + seconds - time.monotonic()))
    frozen.signal(signal.SIGCONT)
    return Run(
        place,
        phase,
        exact=done.token_ids == plain.token_ids and done.text == plain.text,
        counted=done.repairs + done.resumes >= 1,
        repairs=done.repairs,
        resumes=done.resumes,
        stall_s=round(max(done.max_stall_s, done.ttft_s - plain.ttft_s), 3),
        undisturbed_stall_s=round(plain.max_stall_s, 3),
        back_s=round(back(nodes, frozen), 2),
    )


class Freezer:
    """Stops one process of a stream's own route."""

    def __init__(self, nodes: LocalSwarm, place: str) -> None:
        self._nodes = nodes
        self._place = place
        self._frozen: list[tuple[LocalNode, float]] = []

    def run(self, tokens: SyncGeneration, plain: Completion | None) -> tuple[LocalNode, float]:
        """Read the stream to its end; return who was stopped and when.

        In prefill if the undisturbed run is given, to know how long that takes.
        """
        stopper = threading.Thread(target=self._stop_in_prefill, args=(tokens, plain))
        if plain is not None:
            stopper.start()
        for count, _ in enumerate(tokens, start=1):
            if plain is None and count == KILL_AT:
                self._stop(tokens)
        if plain is not None:
            stopper.join()
        return self._frozen[0]

    def _stop_in_prefill(self, tokens: SyncGeneration, plain: Completion) -> None:
        while not tokens.route:
            time.sleep(0.001)
        time.sleep(plain.ttft_s * 0.3)
        self._stop(tokens)

    def _stop(self, tokens: SyncGeneration) -> None:
        node = self._nodes.node_of(victim(tokens, self._place))
        node.signal(signal.SIGSTOP)
        self._frozen.append((node, time.monotonic()))


def back(nodes: LocalSwarm, frozen: LocalNode) -> float:
    """Wait until a node that runs again holds nothing, and everybody sees it; return how long."""
    began = time.monotonic()
    with Client(frozen.address, timeout=30.0) as client:
        while (
            client.status().counters["hop_sessions"]
            or client.status().counters["hop_kv_reserved_bytes"]
        ):
            time.sleep(0.05)
    for node in nodes.nodes:
        with Client(node.address, timeout=30.0) as client:
            while frozen.pid not in {p.pid for p in client.status().peers if p.state == "serving"}:
                time.sleep(0.05)
    return time.monotonic() - began


def summary(runs: list[Run]) -> dict[str, object]:
    counted = [run for run in runs if run.counted]
    stalls = sorted(run.stall_s for run in counted)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "runs": len(runs),
        "counted": len(counted),
        "exact": sum(run.exact for run in counted),
        "stall_median_s": stalls[len(stalls) // 2] if stalls else None,
        "stall_worst_s": stalls[-1] if stalls else None,
        "back_worst_s": max((run.back_s for run in runs), default=None),
    }


if __name__ == "__main__":
    sys.exit(main())
