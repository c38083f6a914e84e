"""What a node says of itself to others: its announcement as of the moment."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from swarmd import __version__
from swarmd.core.clock import Clock
from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.core.span import Span
from swarmd.engine.stage import Stage
from swarmd.node.executor import Executor
from swarmd.node.host import StageHost

RATE_WINDOW_S = 10.0
LATE_STEP_S = 0.01


class Rate:
    """Tokens per second over the last ten seconds, from a counter that only grows."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def update(self, count: int, now: float) -> float:
        """Note the counter and return the rate."""
        self._samples.append((now, count))
        while self._samples[0][0] < now - RATE_WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        return (count - before) / (now - since) if now > since else 0.0


class Description:
    """What this node announces: `loading` at first, then what the running parts measure."""

    def __init__(
        self,
        peer_id: str,
        address: str,
        model: ModelInfo,
        span: Span,
        dtype: str,
        device: str,
        clock: Clock,
        pid: int,
        *,
        moves: bool = False,
    ) -> None:
        self.plan: Span | None = None
        """Where the node is about to move, or is moving."""
        self.lag_s = 0.0
        """How late its timers come; 0: not measured."""
        self.starves = False
        """Whether others are to go before this node, which gets too little time."""
        self._base = Announcement(
            peer_id=peer_id,
            address=address,
            model=model,
            span=span,
            state=NodeState.LOADING,
            issued_at=0.0,
            expires_at=0.0,
            dtype=dtype,
            device=device,
            pid=pid,
            version=__version__,
            moves=moves,
        )
        self._stage: Stage | None = None
        self._executor: Executor | None = None
        self._host: StageHost | None = None
        self._rate = Rate()
        self._clock = clock

    @property
    def model(self) -> ModelInfo:
        """The model of which it serves a part."""
        return self._base.model

    def loaded(self, stage: Stage, executor: Executor, host: StageHost) -> None:
        """From now on measure these."""
        self._stage, self._executor, self._host = stage, executor, host
        self._base = replace(self._base, precision=stage.precision)

    def load(self) -> tuple[object, ...]:
        """Return what has to differ before a look at its load can have anything to announce."""
        late = round(self.lag_s / LATE_STEP_S)
        if self._stage is None or self._executor is None or self._host is None:
            return (late, self.starves)
        sessions, measured = len(self._host.table.sessions), self._executor.stats.step_ms > 0
        free = self._host.table.free_bytes()
        return (late, self.starves, sessions, self._executor.queue_depth, free, measured)

    def now(
        self, state: NodeState, coordinate: tuple[float, ...], *, leaves: bool = False
    ) -> Announcement:
        """Return the announcement for this moment."""
        if self._stage is None or self._executor is None or self._host is None:
            return replace(
                self._base, state=state, coordinate=coordinate, plan=self.plan, leaves=leaves
            )
        stats, budget = self._executor.stats, self._stage.budget
        return replace(
            self._base,
            state=state,
            coordinate=coordinate,
            plan=self.plan,
            leaves=leaves,
            device=str(self._stage.device),
            step_ms=stats.step_ms,
            prefill_ms=stats.prefill_ms,
            tokens_per_s=self._rate.update(stats.tokens, self._clock.monotonic()),
            sessions=len(self._host.table.sessions),
            queue_depth=self._executor.queue_depth,
            lag_ms=1000 * self.lag_s,
            starves=self.starves,
            kv_total_bytes=budget.total_bytes,
            kv_free_bytes=max(0, self._host.table.free_bytes()),
            kv_bytes_per_token=self._stage.kv_bytes_per_token,
            replay_exact=self._stage.replay_exact,
            ragged=self._stage.ragged,
        )
