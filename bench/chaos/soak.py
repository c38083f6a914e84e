"""`python -m bench.chaos.soak HOURS`: churn for hours, one kill and one join every 20 s.

One node of each span is never killed: its memory is what is looked at. Prints a line a minute, and
a JSON verdict at the end; exit code 0 if all is as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.chaos.lab import SPANS, Lab, Settings
from bench.chaos.load import Load
from bench.chaos.verdict import Calm, Stream, is_exact, percentile, whole
from swarmd.cli.bench.machine import circumstances
from swarmd.cli.demo import demo_model
from swarmd.cli.local_swarm import LocalNode, LocalSwarm

EVERY_S = 20.0
WARM_UP_S = 1800.0
GROWTH_MIB = 1.0
"""An hour, after the warm-up."""
SUCCESS = 0.999
RESULT = Path(__file__).parent.parent / "results" / "chaos-soak.json"


def main() -> int:
    """Run the churn."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("hours", type=float, nargs="?", default=2.0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    return asyncio.run(soak(options))


async def soak(options: argparse.Namespace) -> int:
    """Run clients through the churn, and judge."""
    settings = Settings(dtype=options.dtype, seed=options.seed, clients=options.clients)
    flags = ("--dtype", options.dtype, "--threads", "1", "--kv-memory", "64MiB")
    env = {"OMP_NUM_THREADS": "1"}
    with LocalSwarm(str(demo_model()), SPANS, flags=flags, env=env) as nodes:
        lab = Lab(nodes, settings)
        lab.witness([(p, settings.tokens) for p in dict.fromkeys(lab.prompts)])
        await lab.revive()
        tally = Tally(await lab.calm(lab.work(), rounds=1))
        # By the order of SPANS: one node of each span stays, the other comes and goes.
        stayers, goers = nodes.nodes[:2] + nodes.nodes[4:5], nodes.nodes[2:4] + nodes.nodes[5:]
        began = time.monotonic()
        async with lab.load(lab.work(again=True)) as load:
            while time.monotonic() - began < options.hours * 3600:
                await asyncio.sleep(EVERY_S)
                churn(lab, load, goers)
                for node in stayers:
                    tally.note(node, time.monotonic() - began)
                tally.take(load.streams, lab.reference)
                if tally.rounds % 3 == 0:
                    print(json.dumps(tally.figures()), flush=True)
            load.stop()
        tally.take(load.streams, lab.reference)
        _, leaked = await lab.until_free()
        died = sum(not node.alive for node in stayers)
    figures = tally.figures() | {"leaked_bytes": leaked, "stayers_that_died": died}
    passed = tally.passed and not leaked and not died
    verdict = {"scenario": "soak", "pass": passed, "hours": options.hours} | figures
    verdict |= {"load": os.getloadavg()[0], "machine": circumstances()["machine"]}
    verdict |= {"date": circumstances()["date"], "commit": circumstances()["commit"]}
    RESULT.write_text(json.dumps(verdict, indent=1) + "\n")
    print(json.dumps(verdict))
    return 0 if passed else 1


def churn(lab: Lab, load: Load, goers: list[LocalNode]) -> None:
    """Start who was killed the last time; kill another one."""
    for node in goers:
        if not node.alive:
            node.restart()
    ready = [node for node in goers if node.is_ready() and node.alive]
    if ready:
        victim = lab.rng.choice(ready)
        load.mark(victim.pid)
        victim.kill()


class Tally:
    """What has happened so far; streams that have ended are counted and forgotten.

    `calm` is what their waits are compared with.
    """

    def __init__(self, calm: Calm) -> None:
        self.rounds = self.requests = self.wrong = self.failed = self.repairs = 0
        self.recomputed = 0
        self._calm = calm
        self._stalls_ms: list[float] = []
        self.errors: set[str] = set()
        self._memory: dict[str, list[tuple[float, float]]] = {}

    def note(self, node: LocalNode, at: float) -> None:
        """Read the memory of a node; `at` is seconds since the beginning."""
        import psutil

        if node.alive:
            rss = psutil.Process(node.pid).memory_info().rss / 2**20
            self._memory.setdefault(node.address, []).append((at, rss))

    def take(
        self, streams: list[Stream], reference: Mapping[tuple[str, int], Sequence[int]]
    ) -> None:
        """Count the streams that have ended, and drop them from the list."""
        self.rounds += 1
        for stream in [s for s in streams if s.done or s.error]:
            streams.remove(stream)
            self.requests += 1
            self.wrong += not is_exact(stream, reference)
            self.failed += bool(stream.error)
            self.repairs += stream.repairs + stream.resumes
            self.recomputed += stream.recomputed
            if stream.hit_at is not None and stream.done:
                self._stalls_ms.append(self._calm.stall(stream) * 1000)
            if stream.error and len(self.errors) < 20:
                self.errors.add(stream.error[:300])

    def growth(self) -> dict[str, float]:
        """MiB an hour of each node that stayed, by least squares, without the warm-up."""
        found = {}
        for address, points in self._memory.items():
            late = [p for p in points if p[0] > WARM_UP_S] or points
            if len(late) > 2:
                found[address] = round(_slope(late) * 3600, 2)
        return found

    @property
    def passed(self) -> bool:
        share = 1 - self.failed / max(1, self.requests)
        warm = all(points[-1][0] > WARM_UP_S for points in self._memory.values())
        grows = warm and any(mib > GROWTH_MIB for mib in self.growth().values())
        return self.requests > 0 and not self.wrong and share >= SUCCESS and not grows

    def figures(self) -> dict[str, object]:
        """Return what is known so far."""
        return {
            "requests": self.requests,
            "wrong": self.wrong,
            "failed": self.failed,
            "error_samples": sorted(self.errors)[:5],
            "hit": len(self._stalls_ms),
            "stall_p50_ms": whole(percentile(self._stalls_ms, 50)),
            "stall_p99_ms": whole(percentile(self._stalls_ms, 99)),
            "stall_most_ms": whole(max(self._stalls_ms, default=0.0)),
            "undisturbed_gap_p99_ms": whole(self._calm.gap_p99 * 1000),
            "recomputed_tokens": self.recomputed,
            "repairs_and_resumes": self.repairs,
            "minutes": round(max((p[-1][0] for p in self._memory.values()), default=0) / 60, 1),
            "rss_mib": {a: round(p[-1][1], 1) for a, p in self._memory.items()},
            "growth_mib_per_hour": self.growth(),
        }


def _slope(points: list[tuple[float, float]]) -> float:
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


if __name__ == "__main__":
    sys.exit(main())
