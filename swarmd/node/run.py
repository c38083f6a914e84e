"""One session that is coordinated here: its driver, and what its client has yet to be told.

What is done with it is `swarmd.node.coordinator`'s.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator

from swarmd.core.route import Hop
from swarmd.node.coordinator_stats import Noted
from swarmd.node.kept import Kept
from swarmd.node.timer import Deadline
from swarmd.pipeline import events as ev
from swarmd.pipeline.driver import Driver

Output = ev.Routed | ev.Emit | ev.Finished


class Run:
    """One driver, and what its client has yet to be told. Iterates until `Finished`."""

    def __init__(self, session: bytes, driver: Driver, positions: int, chunk_size: int) -> None:
        self.session = session
        self.driver = driver
        self.positions = positions
        self.chunk_size = chunk_size
        self._outputs: deque[Output] = deque()
        self._reader: asyncio.Future[None] | None = None
        """Of who waits for the next one."""
        self.deadline: Deadline | None = None
        self.priority = 0
        self.tenant = b""
        self.past: Kept | None = None
        self.lost = ""
        """The coordinator before, if its client has lost that one without a word."""
        self.admitted = driver.request.resumed
        """Whether hops hold KV for it, or did."""
        self.waits_since = 0.0
        """When its last token came, here or at another coordinator; before the first, it itself."""
        self.has_emitted = False
        """Whether a token came, here or at another coordinator."""
        self.noted: Noted = ()
        """What has been counted of it."""
        self.stays_until = 0.0
        """Before that it is not given to another coordinator because this one is slow."""
        self.bears, self.bears_until = "", 0.0
        """The slow hop that it was to go round last; before that time it is not asked again."""
        self.proved = True
        """Whether the hops of its route have computed a token, since it goes over these."""
        self.has_begun = False
        """Whether its prompt is computed: a token came, or it ended without one."""

    def unfit(self, need: ev.NeedRoute, starving: frozenset[str]) -> frozenset[str]:
        """Who will not do as it starves: as a copy, or for a hop that is left and does as well."""
        left = {hop.peer_id for hop in self.driver.route if hop.blocks in need.spans}
        return starving if need.spare or left & starving else frozenset()

    @property
    def repairs(self) -> int:
        return self.driver.repairs

    @property
    def cached(self) -> int:
        """Prompt tokens that needed no prefill."""
        return self.driver.cached

    @property
    def recomputed(self) -> int:
        """Positions that any hop had to compute once more."""
        return self.driver.recomputed

    def put(self, output: Output) -> int:
        """Have something told to the client; return how much it has yet to be told."""
        self._outputs.append(output)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        return len(self._outputs)

    async def __aiter__(self) -> AsyncIterator[Output]:
        loop = asyncio.get_running_loop()
        while True:
            while not self._outputs:
                self._reader = loop.create_future()
                await self._reader
            output = self._outputs.popleft()
            yield output
            if isinstance(output, ev.Finished):
                return


def go_round(
    runs: Iterable[Run], slow: Callable[[Hop], bool], now: float
) -> Iterator[tuple[Run, str]]:
    """Yield the sessions that could leave a slow hop now, and which: another than the last time.

    Those come first that have not been asked for longest.
    """
    for run in sorted(runs, key=lambda run: run.bears_until):
        peers = [hop.peer_id for hop in run.driver.route if slow(hop)]
        if peers and now >= run.bears_until and run.driver.may_replace(now):
            yield run, next((peer for peer in peers if peer != run.bears), peers[0])
