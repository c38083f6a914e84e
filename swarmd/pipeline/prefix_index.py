"""What a hop keeps of prompts after their sessions: which units there are, who uses them, who goes.

Counts and outputs only: the KV itself lies with the executor, which is told by actions. When a
session asks, computes and ends is `hop.HopTable`'s business.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from swarmd.core.frames import Step
from swarmd.core.prefix import KEY_BYTES
from swarmd.core.span import Span
from swarmd.pipeline.events import Attach, Drop, Freeze, HopAction
from swarmd.pipeline.hop_session import HopSession
from swarmd.pipeline.hop_values import HopCounters, HopPolicy, KVAccount, StageFacts


@dataclass(slots=True)
class _Unit:
    """One unit of positions whose KV is shared, with the outputs that the hop sent on."""

    outputs: Mapping[int, Step]
    """The chunks that end within the unit, by their end. They may begin before it."""
    kv_bytes: int
    output_bytes: int
    users: int = 0


class PrefixIndex:
    """All units that a hop table shares; the one that has been unused for longest goes first.

    A coordinator names units as it likes, so each has names of its own: nobody can put KV under a
    name that another one's sessions will use.
    """

    def __init__(
        self, account: KVAccount, counters: HopCounters, facts: StageFacts, policy: HopPolicy
    ) -> None:
        self.unit = policy.prefix_unit if facts.rewinds else 0
        """Positions; 0 shares nothing."""
        self.idle_bytes = 0
        """KV that nobody uses: it goes when room is needed."""
        self._account = account
        self._counters = counters
        self._output_limit = policy.replay_log_bytes
        self._chunk_exact = facts.chunk_exact
        self._output_bytes = self._idle_output_bytes = 0
        self._units: dict[bytes, _Unit] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._units)

    # Sessions.

    def names(
        self, sender: str, blocks: Span, unit: int, keys: Iterable[bytes]
    ) -> tuple[bytes, ...]:
        """What this hop calls the units that a coordinator names; none of another length."""
        if not self.unit or unit != self.unit:
            return ()
        return tuple(_name(sender, blocks, key) for key in keys)

    def attach(self, session: HopSession) -> list[HopAction]:
        """Let a new session begin with the units that are there, where one of its chunks begins.

        Its prompt's last position is left out: somebody has to compute the token that follows.
        """
        if not session.prefix:
            return []
        most = (session.prompt_tokens - 1) // self.unit
        names = session.prefix[:most]
        hits = next((i for i, name in enumerate(names) if name not in self._units), len(names))
        hits -= hits % (math.lcm(session.grain, self.unit) // self.unit)
        if not hits:
            return []
        for index, name in enumerate(names[:hits]):
            self._use(session, index)
            for end, step in self._units[name].outputs.items():
                if end % session.grain == 0:
                    session.log.adopt(replace(step, session=session.id, epoch=0, wants=()))
        session.next_unit = hits
        session.length = hits * self.unit
        self._counters.prefix_hit_positions += session.length
        return [Attach(session.id, names[:hits])]

    def share(self, session: HopSession, computed: int) -> list[HopAction]:
        """Share positions `[0, computed)` of a session, as far as they are named."""
        actions: list[HopAction] = []
        while session.prefix and session.next_unit < len(session.prefix):
            if computed < (session.next_unit + 1) * self.unit:
                break
            actions += self._freeze(session, session.next_unit)
            session.next_unit += 1
        return actions

    def rewind(self, session: HopSession) -> None:
        """Give up what lies above the session's length: its own KV has to grow by that."""
        if session.prefix:
            keep = session.length // self.unit
            session.next_unit = min(session.next_unit, keep)
            self._unuse(session, [index for index in session.shared if index >= keep])

    def release(self, session: HopSession) -> None:
        """The session has ended."""
        self._unuse(session, list(session.shared))

    # Room.

    def reserve(self, session: HopSession) -> tuple[bool, list[HopAction]]:
        """Reserve KV for what the session does not share; what nobody uses goes for it.

        Where even that would not do, nothing goes, and the answer is False.
        """
        own = self._own(session)
        lacking = self._account.lacking(session.id, session.blocks, own)
        if lacking > self.idle_bytes:
            return False, []
        actions: list[HopAction] = []
        while not self._account.reserve(session.id, session.blocks, own):
            if not self._idle:
                return False, actions
            actions.append(self._evict())
        return True, actions

    def clear(self) -> list[HopAction]:
        """Drop everything that nobody uses."""
        return [self._evict() for _ in range(len(self._idle))]

    def _own(self, session: HopSession) -> int:
        return max(0, session.max_positions - len(session.shared) * self.unit)

    def _freeze(self, session: HopSession, index: int) -> list[HopAction]:
        """Share one more unit of a session, if that can be."""
        name, start = session.prefix[index], index * self.unit
        if name in self._units:
            return []  # another session was faster; this one keeps its own
        outputs = self._outputs(session, start)
        if outputs is None:
            return []  # the log has lost some
        nbytes = sum(step.hidden.nbytes for step in outputs.values() if step.hidden)
        if self._output_bytes - self._idle_output_bytes + nbytes > self._output_limit:
            return []
        actions: list[HopAction] = []
        while self._output_bytes + nbytes > self._output_limit:
            actions.append(self._evict())
        kv_bytes = self._account.size(session.blocks, self.unit)
        self._units[name] = _Unit(outputs, kv_bytes, nbytes, users=1)
        self._output_bytes += nbytes
        session.shared[index] = name
        if not self._move(session, name):
            del session.shared[index]
            self._forget(name)
            self._account.reserve(session.id, session.blocks, self._own(session))
            return actions
        session.log.share(start + self.unit)
        return [*actions, Freeze(session.id, name, start, start + self.unit)]

    def _outputs(self, session: HopSession, start: int) -> Mapping[int, Step] | None:
        """The chunks that end within the unit at `start`; None if one of them is not there."""
        if session.last:
            return {}
        grain, found = session.grain, {}
        for end in range(-(-(start + 1) // grain) * grain, start + self.unit + 1, grain):
            step = session.log.chunk(end - grain, end, exact=self._chunk_exact)
            if step is None:
                return None
            found[end] = step
        return found

    def _move(self, session: HopSession, name: bytes) -> bool:
        """Move a reservation from the session to its unit; False where rounding forbids it."""
        self._account.reserve(session.id, session.blocks, self._own(session))
        return self._account.reserve(name, session.blocks, self.unit)

    def _use(self, session: HopSession, index: int) -> None:
        name = session.shared[index] = session.prefix[index]
        unit = self._units[name]
        unit.users += 1
        if name in self._idle:
            del self._idle[name]
            self.idle_bytes -= unit.kv_bytes
            self._idle_output_bytes -= unit.output_bytes

    def _unuse(self, session: HopSession, indices: Iterable[int]) -> None:
        """Of units that nobody uses any more, the ones that follow others are the first to go."""
        for index in sorted(indices, reverse=True):
            name = session.shared.pop(index)
            unit = self._units[name]
            unit.users -= 1
            if not unit.users:
                self._idle[name] = None
                self.idle_bytes += unit.kv_bytes
                self._idle_output_bytes += unit.output_bytes

    def _evict(self) -> HopAction:
        name, _ = self._idle.popitem(last=False)
        unit = self._forget(name)
        self.idle_bytes -= unit.kv_bytes
        self._idle_output_bytes -= unit.output_bytes
        self._account.release(name)
        self._counters.prefix_evicted_positions += self.unit
        return Drop(name)

    def _forget(self, name: bytes) -> _Unit:
        unit = self._units.pop(name)
        self._output_bytes -= unit.output_bytes
        return unit


def _name(sender: str, blocks: Span, key: bytes) -> bytes:
    data = b"\0".join((sender.encode(), str(blocks).encode(), key))
    return hashlib.blake2b(data, digest_size=KEY_BYTES).digest()
