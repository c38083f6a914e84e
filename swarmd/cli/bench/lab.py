"""A swarm that runs, with a client and a meter: crowds are measured here, as often as time allows.

Which crowds, and what their figures mean, is the scenarios'.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from swarmd.cli.bench.crowd import Crowd, CrowdRun
from swarmd.cli.bench.readings import Meter
from swarmd.cli.bench.report import Report, compare
from swarmd.cli.bench.run import Run
from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import AsyncClient

Ids = Sequence[int]
Prompts = Sequence[Sequence[int]]
TIMEOUT_S = 3600.0


class Lab:
    """Clients go to the first node."""

    def __init__(self, run: Run, report: Report, nodes: LocalSwarm) -> None:
        self._run = run
        self._report = report
        self._stack = AsyncExitStack()
        self.client = AsyncClient(nodes.nodes[0].address, timeout=TIMEOUT_S)
        self.meter = Meter(nodes.nodes)
        self.must_hold = False
        """Whether ids may not depend on what runs beside a session."""

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.client)
        await self._stack.enter_async_context(self.meter)
        self.must_hold = self._run.settings.dtype == "float32" or await self.meter.exact()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def warm_up(self, prompts: Prompts) -> None:
        """Run two sessions whose figures nobody sees."""
        self._run.step("warm-up")
        await self.crowd(prompts[:2], min(8, self._run.settings.tokens))

    async def crowd(
        self,
        prompts: Prompts,
        tokens: int | None = None,
        request: Mapping[str, object] | None = None,
    ) -> CrowdRun:
        """Run one crowd, once."""
        wanted = self._run.settings.tokens if tokens is None else tokens
        return await Crowd(self.client, self.meter, prompts, wanted, request).run()

    async def rounds(
        self,
        prompts: Prompts,
        what: str,
        *,
        tokens: int | None = None,
        rounds: int | None = None,
    ) -> list[CrowdRun]:
        """Run one crowd as often as wanted and as the budget allows; none if not even once.

        Rounds that others disturbed are repeated. Raises SwarmdError if they do so again and again.
        """
        wanted = self._run.settings.rounds if rounds is None else rounds
        done: list[CrowdRun] = []
        disturbed, took_s = 0, 0.0
        while len(done) < wanted and self._run.affords(took_s):
            self._run.step(f"{what}, round {len(done) + 1} of {wanted}")
            with self._run.others.watched() as stretch:
                crowd = await self.crowd(prompts, tokens)
            took_s = crowd.seconds
            if self._run.disturbed(stretch):
                disturbed += 1
                self._run.give_up_if_busy(stretch, disturbed, f"while {what} was measured")
            else:
                done.append(dataclasses.replace(crowd, others=stretch.share))
        self._note(what, len(done), wanted, disturbed)
        return done

    def _note(self, what: str, done: int, wanted: int, disturbed: int) -> None:
        if disturbed:
            self._report.notes.append(
                f"{what}: {disturbed} rounds repeated, which others disturbed"
            )
        if done < wanted:
            self._report.notes.append(
                f"{what}: {done} of {wanted} rounds fitted into the budget of "
                f"{self._run.settings.budget_s:g} s"
            )

    def compare_rounds(self, what: str, crowds: Sequence[CrowdRun], seen: list[Ids]) -> None:
        """Compare each session with what `seen` has of its index, and keep there what is new."""
        pairs = []
        for crowd in crowds:
            for index, session in enumerate(crowd.sessions):
                if index < len(seen):
                    pairs.append((session.ids, seen[index]))
                else:
                    seen.append(session.ids)
        if pairs:
            against = "other crowds and rounds"
            self._report.comparisons.append(compare(what, against, pairs, must_hold=self.must_hold))

    async def check_alone(self, prompts: Prompts, seen: Sequence[Ids]) -> None:
        """Run some sessions with nobody beside them."""
        pairs = []
        for index in spread(len(seen), self._run.settings.checked):
            self._run.step(f"session {index} alone")
            alone = await self.crowd([prompts[index]], len(seen[index]))
            pairs.append((seen[index], alone.sessions[0].ids))
        if pairs:
            self._report.comparisons.append(
                compare("sessions in crowds", "each alone", pairs, must_hold=self.must_hold)
            )


def spread(count: int, wanted: int) -> list[int]:
    """Return up to `wanted` indices of `count`, the last one first and spread evenly."""
    wanted = min(count, wanted)
    return [count - 1 - n * count // wanted for n in range(wanted)]
