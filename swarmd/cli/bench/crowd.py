"""A crowd of sessions that begin together: what each received and when, and the figures of it.

The clients are `swarmd.AsyncClient` in this process; what the daemons counted is `readings`'.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmd.cli.bench.readings import Meter, Reading, StageWork, all_busy, between

if TYPE_CHECKING:
    from swarmd.client import AsyncClient

Figures = dict[str, float | int | str | list[float] | None]


@dataclass(frozen=True, slots=True)
class SessionRun:
    """One session from the client's side; times by the monotonic clock."""

    began: float
    ids: tuple[int, ...]
    times: tuple[float, ...]
    """When each token came."""
    cached_tokens: int = 0

    @property
    def ttft_s(self) -> float:
        return self.times[0] - self.began

    @property
    def rate(self) -> float:
        """Tokens per second after the first; 0 if there was only one."""
        took = self.times[-1] - self.times[0]
        return (len(self.times) - 1) / took if took else 0.0


@dataclass(frozen=True, slots=True)
class CrowdRun:
    """All sessions of a crowd, and what each daemon did, whole and while all were decoding."""

    sessions: tuple[SessionRun, ...]
    whole: tuple[StageWork, ...]
    decoding: tuple[StageWork, ...]
    """From the moment when all had their first token until the first had its last."""
    client_cpu_s: float = 0.0
    """Of this process, in which all clients are."""
    others: float = 0.0
    """Share of the machine that other processes took."""

    @property
    def seconds(self) -> float:
        began = min(session.began for session in self.sessions)
        return max(session.times[-1] for session in self.sessions) - began

    @property
    def tokens(self) -> int:
        return sum(len(session.ids) for session in self.sessions)

    def figures(self) -> Figures:
        """Return the row of a table."""
        rates = [session.rate for session in self.sessions]
        ttfts = [session.ttft_s for session in self.sessions]
        mean = statistics.fmean(rates)
        works = self.decoding or self.whole
        return {
            "tokens_per_s": self.tokens / self.seconds,
            "decode_tokens_per_s": decode_rate(self.sessions),
            "session_rate_mean": mean,
            "session_rate_min": min(rates),
            "slowest_to_mean": min(rates) / mean if mean else None,
            "ttft_p50_s": percentile(ttfts, 50),
            "ttft_p99_s": percentile(ttfts, 99),
            "ttft_p99_to_p50": percentile(ttfts, 99) / percentile(ttfts, 50),
            "all_busy": all_busy(works),
            "stage_busy": [work.busy for work in works],
            "stage_microbatch": [work.microbatch for work in works],
            "stage_step_ms": [work.step_ms for work in works],
            "stage_cpu": [work.cpu_s / work.seconds for work in works],
            "client_cpu": self.client_cpu_s / self.seconds,
            "others_cpu": self.others,
            "cached_tokens": sum(session.cached_tokens for session in self.sessions),
            "seconds": self.seconds,
            **self._own_cost(works),
        }

    def _own_cost(self, works: Sequence[StageWork]) -> Figures:
        """What a token costs at a hop, in milliseconds: in `Stage.forward` and besides.

        Besides by the wall clock only for a single session: its token is at one hop or between two.
        """
        steps = sum(work.steps for work in works) or 1.0
        forward = sum(work.busy_s for work in works) / steps
        own_cpu = sum(work.cpu_s - work.forward_cpu_s for work in works) / steps
        own_wall = None
        if len(self.sessions) == 1 and self.sessions[0].rate:
            own_wall = 1000 * (1 / self.sessions[0].rate / len(works) - forward)
        return {
            "forward_ms": 1000 * forward,
            "own_cpu_ms": 1000 * own_cpu,
            "own_wall_ms": own_wall,
        }


def decode_rate(sessions: Sequence[SessionRun]) -> float | None:
    """Tokens per second of all together while all decode; None if there was no such time."""
    start = max(session.times[0] for session in sessions)
    end = min(session.times[-1] for session in sessions)
    if end <= start:
        return None
    came = sum(start < moment <= end for session in sessions for moment in session.times)
    return came / (end - start)


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile: a value that occurred."""
    rank = max(1, math.ceil(percent / 100 * len(values)))
    return sorted(values)[rank - 1]


def medians(rows: Sequence[Figures]) -> Figures:
    """Return the median of each figure over rounds; what is no number is the first one's."""
    merged: Figures = dict(rows[0])
    for name in merged:
        values = [row[name] for row in rows]
        numbers = [v for v in values if isinstance(v, int | float)]
        lists = [v for v in values if isinstance(v, list)]
        if numbers:
            merged[name] = statistics.median(numbers)
        elif lists:
            merged[name] = [statistics.median(each) for each in zip(*lists, strict=True)]
    return merged


class Crowd:
    """Runs one crowd. `prompts` are one per session."""

    def __init__(
        self,
        client: AsyncClient,
        meter: Meter,
        prompts: Sequence[Sequence[int]],
        tokens: int | Sequence[int],
        request: Mapping[str, object] | None = None,
    ) -> None:
        self._client = client
        self._meter = meter
        self._prompts = prompts
        count = len(prompts)
        self._tokens = [tokens] * count if isinstance(tokens, int) else list(tokens)
        self._request = dict(request or {})
        self._waiting = len(prompts)
        self._all_began = asyncio.Event()
        self._one_ended = asyncio.Event()

    async def run(self) -> CrowdRun:
        """Begin all sessions at once; return when the last has ended."""
        before, cpu = await self._meter.read(), time.process_time()
        try:
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read_while_decoding())
                tasks = [group.create_task(self._one(*pair)) for pair in self._pairs()]
        except ExceptionGroup as failed:
            raise _first(failed) from None
        cpu = time.process_time() - cpu
        whole = _works(before, await self._meter.read(intervals=True))
        sessions = tuple(task.result() for task in tasks)
        return CrowdRun(sessions, whole, _works(*reader.result()), cpu)

    def _pairs(self) -> list[tuple[Sequence[int], int]]:
        return list(zip(self._prompts, self._tokens, strict=True))

    async def _read_while_decoding(self) -> tuple[list[Reading], list[Reading]]:
        await self._all_began.wait()
        if self._one_ended.is_set():
            return [], []
        start = await self._meter.read()
        await self._one_ended.wait()
        return start, await self._meter.read(intervals=True)

    async def _one(self, prompt: Sequence[int], tokens: int) -> SessionRun:
        began, times, ids = time.monotonic(), [], []
        async with self._client.generate(
            prompt,
            max_tokens=tokens,
            ids_only=True,
            ignore_eos=True,
            **self._request,  # type: ignore[arg-type]
        ) as generation:
            async for token in generation:
                times.append(time.monotonic())
                ids.append(token.id)
                if len(ids) == 1:
                    self._began()
            cached = generation.result.cached_tokens
        self._one_ended.set()
        return SessionRun(began, tuple(ids), tuple(times), cached)

    def _began(self) -> None:
        self._waiting -= 1
        if not self._waiting:
            self._all_began.set()


def _first(failed: ExceptionGroup[Exception]) -> Exception:
    """The error of one session: the others were cancelled, or say the same."""
    error = failed.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def _works(before: Sequence[Reading], after: Sequence[Reading]) -> tuple[StageWork, ...]:
    return tuple(between(a, b) for a, b in zip(before, after, strict=True))
