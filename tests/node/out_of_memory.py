"""A process with a limit on its memory: long prompts beside a decode until one finds no room.

Prints one line of JSON: what became of it, whether the decodes beside it are those without a limit,
and whether a prompt is computed again when there is memory again.
"""

from __future__ import annotations

import json
import queue
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from swarmd.cli.demo import demo_model
from swarmd.core.frames import Step
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.engine.checkpoint import open_checkpoint
from swarmd.engine.load import load_stage
from swarmd.node.executor import Executor, Result
from swarmd.pipeline import events as ev

ROOM = 1 << 20
LONG = 1500
MANY = 60
SMALL, LARGE, TWIN = b"s" * 16, b"l" * 16, b"t" * 16


def main() -> None:
    """Say what happens."""
    source = open_checkpoint(str(demo_model()))
    stage = load_stage(source, Span(0, 8), dtype="float32", device="cpu", kv_memory=1 << 28)
    stage.chunk_exact = False  # the whole prompt beside the decode
    results: queue.Queue[Result] = queue.Queue()

    def deliver(some: Sequence[Result]) -> None:
        for result in some:
            results.put(result)

    executor = Executor(stage, 1, deliver, lambda: sys.exit("the compute thread died"))
    executor.start()

    def run(*submits: ev.Submit) -> dict[int, Result]:
        executor.put(*submits)
        got = [results.get(timeout=60) for _ in submits]
        return {result.ticket: result for result in got}

    prompt = tuple(10 + i for i in range(LONG))
    alone, beside = [], []
    run(submit(SMALL, 1, 0, (5, 6, 7)), submit(TWIN, 2, 0, (5, 6, 7)))
    for position in range(3, 3 + MANY):
        alone += ids(run(submit(TWIN, 100 + position, position, (8,)))[100 + position])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (virtual_bytes() + ROOM, hard))
    outcome: list[Result] = []
    for position in range(3, 3 + MANY):
        large = bytes([position]) * 16
        got = run(submit(large, 4, 0, prompt), submit(SMALL, 5, position, (8,)))
        beside += ids(got[5])
        outcome.append(got[4])
        if isinstance(got[4], ev.ComputeFailed):
            executor.put(ev.Free(large))
            break
    executor.put(*(ev.Free(bytes([position]) * 16) for position in range(3, 3 + MANY)))
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    again = run(submit(LARGE, 6, 0, prompt))[6]
    refused = outcome[-1]
    print(
        json.dumps(
            {
                "exhausted": isinstance(refused, ev.ComputeFailed) and refused.exhausted,
                "message": getattr(refused, "message", ""),
                "exact": beside == alone[: len(beside)] and len(beside) == len(outcome),
                "again": isinstance(again, ev.Computed),
                "alive": executor.running,
            }
        )
    )
    executor.stop()


def virtual_bytes() -> int:
    """What RLIMIT_AS counts."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def submit(session: bytes, ticket: int, position: int, tokens: tuple[int, ...]) -> ev.Submit:
    """Make one step whose last position is wanted."""
    end = position + len(tokens)
    step = Step(session, 1, 1, position, (len(tokens),), token_ids=tokens, wants=(end - 1,))
    return ev.Submit(session, ticket, Span(0, 8), step, end + 1, SamplingParams())


def ids(result: Result) -> list[int]:
    """Return the ids that were drawn; none if it failed."""
    return [token.id for token in result.tokens] if isinstance(result, ev.Computed) else []


if __name__ == "__main__":
    main()
