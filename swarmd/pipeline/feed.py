"""The coordinator's own log: a session's ids, and how far they have been sent down the pipeline.

When to rewind, and along which route, is the driver's decision.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from swarmd.core.frames import Step
from swarmd.pipeline.repair import Held, plan
from swarmd.pipeline.steps import ChunkPlan


class Feed:
    """Turns ids into steps for the first hop, with a bounded number of steps under way.

    Every so many steps a token is asked for although its id is known: its coming back says how far
    the pipeline is.
    """

    def __init__(
        self,
        session: bytes,
        ids: list[int],
        chunks: ChunkPlan,
        window: int,
        replay_step: int,
        computed: int = 0,
    ) -> None:
        """`computed` positions were computed for coordinators before this one."""
        self.session = session
        self.ids = ids
        self.chunks = chunks
        self.epoch = 0
        self.round = 0
        self.sent = 0
        """Positions below it are under way or done, in this round."""
        self.highest = computed
        """Positions below it have been sent at least once, by this coordinator or another one."""
        self.waited_us = 0
        """How long the session has waited for stages so far, as its last token said."""
        self.recomputed = 0
        """Positions that any hop had to compute once more."""
        self.paused = False
        """Whether no steps are to be sent now; ends with the round."""
        self._window = window
        self._replay_step = replay_step
        self._under_way: deque[int] = deque()
        self._unmarked = 0

    @property
    def known(self) -> int:
        """Number of ids: prompt and output so far."""
        return len(self.ids)

    @property
    def last_chunk(self) -> int:
        """Where the chunk of the last known id starts; its token is the next one."""
        return self.chunks.floor(self.known - 1)

    @property
    def outstanding(self) -> int:
        """Positions from the oldest unanswered step to the end of what was sent."""
        return self.sent - self.reached

    @property
    def is_quiet(self) -> bool:
        """Whether every step has been answered: all hops hold the same."""
        return not self._under_way and self.sent == self.known - 1

    @property
    def reached(self) -> int:
        """Positions below it have been computed by all hops, as far as answers say."""
        return self._done if self._under_way else self.sent

    def begin(self, epoch: int) -> None:
        """Enter a new epoch, at round 0 and position 0."""
        self.epoch, self.round, self.paused = epoch, 0, False
        self._restart(0)

    def rewind(self, position: int) -> None:
        """Enter a new round in which steps begin at `position`, a chunk's start."""
        self.round, self.paused = self.round + 1, False
        self._restart(position)

    def _restart(self, position: int) -> None:
        self.sent = self._done = position
        self._under_way.clear()
        self._unmarked = 0

    def catch_up(self, held: Sequence[Held]) -> tuple[tuple[int, ...], list[Step]]:
        """Enter the round in which all hops of a new route hold the same.

        Returns from where on each hop is to send its outputs, and steps for the first hop.
        """
        made = plan(held, self.last_chunk, self.chunks)
        # What hops hold was computed, also where it was never sent from here.
        self.highest = max(self.highest, *(hop.kv_length for hop in held))
        # What comes after that is counted as it is sent.
        self.recomputed += max(0, made.rewind_to - min(hop.kv_length for hop in held))
        steps = list(self.replay(made.feed_from, made.rewind_to, made.send_from[0]))
        self.rewind(made.rewind_to)
        return made.send_from, steps

    def replay(self, start: int, end: int, silent: int) -> Iterator[Step]:
        """Steps for `[start, end)` that ask for no token: the first hop is to have them again.

        What it makes of positions below `silent` goes no further, so that no stage waits for it:
        these chunks come several in a step, which are computed in less time together.
        """
        self.sent = self.chunks.floor(start)
        while self.sent < end:
            yield self._take(end, mark=False, silent=silent)

    def pump(self) -> Iterator[Step]:
        """As many steps as may be under way; the last known position asks for a token."""
        while not self.paused and self.sent < self.known and len(self._under_way) < self._window:
            self._unmarked += 1
            mark = self._unmarked >= max(1, self._window // 2)
            step = self._take(self.known, mark)
            self.recomputed += max(0, min(step.end, self.highest) - step.position)
            self.highest = max(self.highest, step.end)
            if step.wants:
                self._unmarked = 0
            self._under_way.append(step.end)
            yield step

    def answered(self, position: int) -> bool:
        """Note that the token for `position` came; return whether that is news."""
        before = len(self._under_way)
        while self._under_way and self._under_way[0] <= position:
            self._done = self._under_way.popleft()
        return len(self._under_way) < before

    def _take(self, end: int, mark: bool, silent: int = 0) -> Step:
        start = self.sent
        one = end - start == 1  # as in decode
        sizes = (1,) if one else self.chunks.together(start, end, self._replay_step, silent)
        self.sent = stop = start + sum(sizes)
        return Step(
            self.session,
            self.epoch,
            self.round,
            start,
            sizes,
            token_ids=tuple(self.ids[start:stop]),
            wants=(stop - 1,) if mark or stop == self.known else (),
            waited_us=self.waited_us,
        )
