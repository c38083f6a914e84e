"""Sessions that a hop keeps after their end, under leases, so that others can go on from them.

What is kept is never written again, so any number of sessions may begin with it: a next turn, or
many forks. The units that it lies in are counted by `prefix_index.PrefixIndex`; which sessions are
to be kept, and for how long, is the coordinator's decision.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from swarmd.core.frames import Open, Refusal, Release
from swarmd.core.span import Span
from swarmd.pipeline.admission import Refused
from swarmd.pipeline.events import Attach, HopAction
from swarmd.pipeline.hop_session import HopSession
from swarmd.pipeline.hop_values import HopCounters, HopPolicy, KVAccount
from swarmd.pipeline.prefix_index import PrefixIndex
from swarmd.pipeline.replay_log import ReplayBudget, ReplayLog


@dataclass(frozen=True, slots=True)
class _Lease:
    """What is left of a session: KV of `[0, length)` in units, and the outputs sent on for it."""

    secret: bytes
    blocks: Span
    units: tuple[bytes, ...]
    """In order; the last may be shorter than the others."""
    length: int
    log: ReplayLog
    ends_at: float


class Leases:
    """All sessions that a hop table keeps. Their KV is not evicted before the end of the lease.

    So that they cannot starve others, they may take only a part of the budget. A session that is to
    be kept counts from its beginning, with all that it may come to: none is disappointed later.
    """

    def __init__(
        self,
        prefixes: PrefixIndex,
        account: KVAccount,
        counters: HopCounters,
        policy: HopPolicy,
        budget: ReplayBudget,
        *,
        chunk_exact: bool,
    ) -> None:
        self._prefixes = prefixes
        self._account = account
        self._counters = counters
        self._policy = policy
        self._budget = budget
        self._chunk_exact = chunk_exact
        self._leases: dict[bytes, _Lease] = {}

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def logs(self) -> Iterator[ReplayLog]:
        """Of what was sent on for kept sessions."""
        return (lease.log for lease in self._leases.values())

    @property
    def next_end(self) -> float | None:
        """When the next lease ends."""
        return min((lease.ends_at for lease in self._leases.values()), default=None)

    def admits(self, order: Open, sessions: Iterable[HopSession]) -> bool:
        """Return whether the session of this open will be kept, if it comes here now.

        Raises Refused if it is to be and cannot; one that is under way already has no choice.
        """
        try:
            self._check(order, sessions)
        except Refused:
            if order.fresh:
                raise
            return False
        return order.keeps

    def _check(self, order: Open, sessions: Iterable[HopSession]) -> None:
        if not order.keeps:
            return
        limit, size = self._policy.keep_bytes, self._account.size
        most = size(order.blocks, order.max_positions)
        if most > limit or not self._prefixes.unit:
            message = (
                f"to keep {order.max_positions} positions takes {most} bytes, and {limit} at most "
                "are for kept sessions here: ask without keep_alive, or for fewer tokens"
            )
            raise Refused(Refusal.TOO_LONG, message)
        keepers = [other for other in sessions if other.keeps]
        own = sum(size(other.blocks, self._prefixes.own(other)) for other in keepers)
        taken = self._prefixes.pinned_bytes + own
        needed = most - size(order.blocks, self._pinned_of(order))
        if taken + needed > limit or len(self) + len(keepers) >= 4 * self._policy.max_sessions:
            message = (
                f"to keep {order.max_positions} positions takes {needed} bytes more, and {taken} "
                f"of the {limit} for kept sessions are taken here: ask without keep_alive, or "
                "again when others have ended"
            )
            raise Refused(Refusal.KEPT_FULL, message)

    def _pinned_of(self, order: Open) -> int:
        """Positions of a new session that are kept in any case, since they are its past's."""
        lease = self._find(order)
        unit = self._prefixes.unit
        return min(lease.length, order.past.tokens) // unit * unit if lease and order.past else 0

    def keep(self, session: HopSession, seconds: float, now: float) -> list[HopAction]:
        """Keep what is computed of a session, which the hop table frees next."""
        self._drop(session.id)
        if not session.keeps:
            return []  # its coordinator has not asked for it at the beginning
        units, actions = self._prefixes.settle(session, session.computed)
        if not units:
            return actions
        self._leases[session.id] = _Lease(
            session.secret,
            session.blocks,
            tuple(units),
            min(session.computed, len(units) * self._prefixes.unit),
            session.log,
            now + min(seconds, self._policy.keep_limit),
        )
        session.log = ReplayLog(self._budget)
        return actions

    def attach(self, session: HopSession, order: Open) -> list[HopAction]:
        """Let a new session begin with its past, if that is kept here.

        Its prompt's last position is left out: somebody has to compute the token that follows.
        """
        lease, past = self._find(order), order.past
        if lease is None or past is None:
            return []
        length = min(lease.length, past.tokens, order.prompt_tokens - 1)
        if not self._chunk_exact and length < past.run:
            length = past.floor if past.floor <= length else 0
        if length < 1:
            return []
        whole = length // self._prefixes.unit
        for index, unit in enumerate(lease.units[:whole]):
            session.shared[index] = unit
            self._prefixes.take(unit, pinned=session.keeps)
        session.next_unit, session.length = whole, length
        session.log.fork(lease.log, session.id, length)
        self._counters.continued += 1
        # What lies in a unit that is cut through is copied: the session will write behind it.
        count = -(-length // self._prefixes.unit)
        return [Attach(session.id, lease.units[:count], length)]

    def _find(self, order: Open) -> _Lease | None:
        past = order.past
        lease = self._known(past.session, past.secret) if past else None
        return lease if lease and lease.blocks == order.blocks else None

    def _known(self, session: bytes, secret: bytes) -> _Lease | None:
        lease = self._leases.get(session)
        return lease if lease and hmac.compare_digest(lease.secret, secret) else None

    def release(self, sender: str, order: Release, now: float) -> list[HopAction]:
        """End a lease early for whoever knows the secret; nobody learns what is kept here."""
        if self._known(order.session, order.secret):
            self._counters.leases_ended += 1
            self._drop(order.session)
        return []

    def end(self, now: float) -> None:
        """Let go of what has been kept long enough; who has begun with it keeps it yet."""
        for session in [key for key, lease in self._leases.items() if lease.ends_at <= now]:
            self._counters.leases_ended += 1
            self._drop(session)

    def _drop(self, session: bytes) -> None:
        lease = self._leases.pop(session, None)
        if lease is not None:
            lease.log.truncate(0)
            for unit in reversed(lease.units):
                self._prefixes.give(unit, pinned=True)
