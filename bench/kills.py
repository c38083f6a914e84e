"""kill -9 to hops and coordinators of a real swarm, again and again: is the text always the same?

Forty runs by default, over first, middle and last hop and the coordinator, in decode and in
prefill. The pid comes from the stream's own route; a run counts only if something was repaired or
resumed, and the kill came where it should: in decode after 25 tokens with 35 to come, in prefill
before the first token. Prints a line a run and writes the verdict to bench/results; ends with 1 if
any text was another one, or if the worst stall was not below 1.5 s.
"""

from __future__ import annotations

import argparse
import json
import math
import secrets
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from swarmd.cli.bench.machine import circumstances
from swarmd.cli.demo import demo_model
from swarmd.cli.local_swarm import LocalNode, LocalSwarm
from swarmd.client import Client, SyncGeneration
from swarmd.core.results import Completion

SPANS = ("0:3", "0:3", "3:6", "3:6", "6:8", "6:8")
BYSTANDER = ("3:6", "--kv-memory", "8KiB")
"""A node without room for anybody's KV: it can coordinate, but never be a hop."""
PLACES = ("first", "middle", "last", "coordinator", "first and coordinator")
PROMPT = "def read_file(path):"
LONG_PROMPT = "\n\n".join(f"def function_{i}(value):\n    return value + {i}" for i in range(150))
TOKENS = 60
KILL_AT = 25
STALL_BAR_S = 1.5
"""A stall must be shorter than this."""
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Run:
    """What became of one run."""

    place: str
    phase: str
    exact: bool
    counted: bool
    tokens_before: int
    """Tokens that had come when the kill was done."""
    repairs: int
    resumes: int
    stall_s: float
    undisturbed_stall_s: float
    recomputed: int


def main() -> int:
    """Do the runs; 0 if they pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    about = circumstances()
    flags = ("--dtype", options.dtype, "--threads", "1", "--kv-memory", "64MiB")
    runs: list[Run] = []
    with LocalSwarm(str(demo_model()), SPANS, flags=(*flags, "--chunk-size", "64")) as nodes:
        bystander = nodes.add(*BYSTANDER)
        while sum(run.counted for run in runs) < options.runs:
            revive(nodes)
            place = PLACES[len(runs) % len(PLACES)]
            phase = "prefill" if (len(runs) // len(PLACES)) % 2 else "decode"
            runs.append(one(nodes, bystander, place, phase))
            print(len(runs), asdict(runs[-1]), flush=True)
            if len(runs) > 2 * options.runs:
                break
    verdict = about | {"dtype": options.dtype} | summary(runs, options.runs)
    RESULTS.mkdir(exist_ok=True)
    name = RESULTS / f"kills-{options.dtype}.json"
    name.write_text(json.dumps(verdict | {"runs": [asdict(r) for r in runs]}, indent=1) + "\n")
    print(json.dumps(verdict))
    return 0 if verdict["pass"] else 1


def revive(nodes: LocalSwarm) -> None:
    """Start the dead again, and wait until everybody sees everybody."""
    for node in nodes.nodes:
        if not node.alive:
            node.restart()
    nodes.wait_ready(240.0)
    pids = {node.pid for node in nodes.nodes}
    for address in nodes.addresses:
        with Client(address, timeout=30.0) as client:
            while {p.pid for p in client.status().peers if p.state == "serving"} != pids:
                time.sleep(0.1)


def one(nodes: LocalSwarm, bystander: LocalNode, place: str, phase: str) -> Run:
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
        if phase == "decode":
            before = kill_in_decode(nodes, tokens, place)
        else:
            before = kill_in_prefill(nodes, tokens, plain, place)
        done = tokens.result
    timely = before >= KILL_AT if phase == "decode" else before == 0
    return Run(
        place,
        phase,
        exact=done.token_ids == plain.token_ids and done.text == plain.text,
        counted=timely and done.repairs + done.resumes >= 1,
        tokens_before=before,
        repairs=done.repairs,
        resumes=done.resumes,
        stall_s=round(max(done.max_stall_s, done.ttft_s - plain.ttft_s), 3),
        undisturbed_stall_s=round(plain.max_stall_s, 3),
        recomputed=done.recomputed_tokens,
    )


def victim(tokens: SyncGeneration, place: str) -> int:
    """The pid to kill, from what the stream itself says."""
    if place == "coordinator":
        assert tokens.coordinator is not None
        return tokens.coordinator.pid
    index = {"first": 0, "first and coordinator": 0, "middle": 1, "last": 2}[place]
    return tokens.route[index].pid


def kill_in_decode(nodes: LocalSwarm, tokens: SyncGeneration, place: str) -> int:
    """Kill after `KILL_AT` tokens; return how many had come."""
    for count, _ in enumerate(tokens, start=1):
        if count == KILL_AT:
            nodes.node_of(victim(tokens, place)).kill()
    return KILL_AT


def kill_in_prefill(
    nodes: LocalSwarm, tokens: SyncGeneration, plain: Completion, place: str
) -> int:
    """Kill soon after the route is known: the prompt is on its way. Return the tokens by then."""
    came: list[int] = []
    before: list[int] = []

    def kill() -> None:
        while not tokens.route:
            time.sleep(0.001)
        time.sleep(plain.ttft_s * 0.3)
        nodes.node_of(victim(tokens, place)).kill()
        before.append(len(came))

    killer = threading.Thread(target=kill)
    killer.start()
    for token in tokens:
        came.append(token.id)
    killer.join()
    return before[0]


def summary(runs: list[Run], wanted: int) -> dict[str, object]:
    """Return the verdict. A text must be exact whether its run counts or not."""
    counted = [run for run in runs if run.counted]
    stalls = [run.stall_s for run in counted]
    worst = max(stalls, default=math.inf)
    exact = sum(run.exact for run in runs)
    return {
        "pass": len(counted) >= wanted and exact == len(runs) and worst < STALL_BAR_S,
        "runs": len(runs),
        "counted": len(counted),
        "exact": sum(run.exact for run in counted),
        "inexact_uncounted": sum(not run.exact for run in runs if not run.counted),
        "stall_median_s": statistics.median(stalls) if stalls else None,
        "stall_worst_s": worst if stalls else None,
        "stall_bar_s": STALL_BAR_S,
    }


if __name__ == "__main__":
    sys.exit(main())
