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

from swarmd.core.frames import Open, Step
from swarmd.core.prefix import KEY_BYTES, PREFIX_UNIT
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
    pins: int = 0
    """Those of its users that are kept, or are to be."""
    private: bool = False
    """Nobody can ask for it by name."""


class PrefixIndex:
    """All units that a hop table shares; the one that has been unused for longest goes first.

    A coordinator names units as it likes, so each has names of its own: nobody can put KV under a
    name that another one's sessions will use.
    """

    def __init__(
        self, account: KVAccount, counters: HopCounters, facts: StageFacts, policy: HopPolicy
    ) -> None:
        self.unit = (policy.prefix_unit or PREFIX_UNIT) if facts.rewinds else 0
        """Positions; 0: sessions cannot share."""
        self.pinned_bytes = 0
        """KV in units that are kept for some time, or are to be."""
        self.idle_bytes = 0
        """KV that nobody uses: it goes when room is needed."""
        self._by_key = policy.prefix_unit > 0
        self._made = 0
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
        if not (self.unit and self._by_key) or unit != self.unit:
            return ()
        return tuple(_name(sender, blocks, key) for key in keys)

    def name(self, session: HopSession, sender: str, order: Open) -> None:
        """Say of a new session which units its prompt consists of, and how it is cut."""
        session.prefix = self.names(sender, order.blocks, order.prefix_unit, order.prefix)
        session.grain = self.unit if self._chunk_exact else max(1, order.prefix_grain)
        if order.past and not self._chunk_exact:
            # The outputs in it are not cut as the prompts of others are: nor may its end be named.
            session.prefix, session.private = (), True

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
            session.shared[index] = name
            self.take(name, pinned=session.keeps)
            for end, step in self._units[name].outputs.items():
                if end % session.grain == 0:
                    session.log.adopt(replace(step, session=session.id, epoch=0, wants=()))
        session.next_unit = hits
        session.length = hits * self.unit
        self._counters.prefix_hit_positions += session.length
        return [Attach(session.id, names[:hits])]

    def share(self, session: HopSession) -> list[HopAction]:
        """Share what a session has computed, as far as it is named."""
        actions: list[HopAction] = []
        if session.private or session.next_unit >= len(session.prefix):
            return actions
        computed = session.computed
        while session.next_unit < len(session.prefix):
            if computed < (session.next_unit + 1) * self.unit:
                break
            actions += self._freeze(session, session.next_unit)
            session.next_unit += 1
        return actions

    def shrink(self, session: HopSession) -> tuple[bool, list[HopAction]]:
        """Give up what lies above the session's length, and reserve its like: see `reserve`."""
        if session.prefix or session.shared:
            keep = session.length // self.unit
            session.next_unit = min(session.next_unit, keep)
            self._unuse(session, [index for index in session.shared if index >= keep])
        return self.reserve(session)

    def release(self, session: HopSession) -> None:
        """The session has ended."""
        self._unuse(session, list(session.shared))

    # Sessions that are kept.

    def settle(self, session: HopSession, length: int) -> tuple[list[bytes], list[HopAction]]:
        """Make units of all of `[0, length)` of a session that is at its end; return their names.

        All but the last are whole. What has no name that others know gets one of its own. Where
        rounding leaves no room for a unit, it and those after it are left out. Each is taken, and
        pinned, at once: or room for the outputs of a later one might be made by dropping it.
        """
        actions: list[HopAction] = []
        names: list[bytes] = []
        session.max_positions = max(length, len(session.shared) * self.unit)
        self._account.reserve(session.id, session.blocks, self.own(session))
        for start in range(0, length, self.unit):
            end = min(start + self.unit, length)
            name = self._known(session, start // self.unit) if end - start == self.unit else None
            if name is None:
                name, made = self._private(session, start, end)
                actions += made
                if name is None:
                    break
            self.take(name, pinned=True)
            names.append(name)
        return names, actions

    def _known(self, session: HopSession, index: int) -> bytes | None:
        """The unit at this place that the session shares, or that another one was faster with."""
        named = index < len(session.prefix) and not session.private
        name = session.prefix[index] if named else b""
        return session.shared.get(index) or (name if name in self._units else None)

    def _private(
        self, session: HopSession, start: int, end: int
    ) -> tuple[bytes | None, list[HopAction]]:
        """Make a unit of a session's positions, whose KV is no longer counted as the session's."""
        self._made += 1
        parts = b"%b kept %d" % (session.id, self._made)
        name = hashlib.blake2b(parts, digest_size=KEY_BYTES).digest()
        session.max_positions -= end - start
        self._account.reserve(session.id, session.blocks, self.own(session))
        if not self._account.reserve(name, session.blocks, end - start):
            return None, []
        steps = [step for step in session.log.since(start) if start < step.end <= end]
        nbytes = sum(step.hidden.nbytes for step in steps if step.hidden)
        actions: list[HopAction] = []
        if self._output_bytes - self._idle_output_bytes + nbytes > self._output_limit:
            nbytes = 0  # the log goes on counting them, and may drop them
        else:
            session.log.share(end)
            while self._output_bytes + nbytes > self._output_limit:
                actions.append(self._evict())
        kv_bytes = self._account.size(session.blocks, end - start)
        self._units[name] = _Unit({}, kv_bytes, nbytes, private=True)
        self._output_bytes += nbytes
        return name, [*actions, Freeze(session.id, name, start, end)]

    def take(self, name: bytes, *, pinned: bool) -> None:
        """Count one more user of a unit."""
        unit = self._units[name]
        unit.users += 1
        unit.pins += pinned
        if pinned and unit.pins == 1:
            self.pinned_bytes += unit.kv_bytes
        if name in self._idle:
            del self._idle[name]
            self.idle_bytes -= unit.kv_bytes
            self._idle_output_bytes -= unit.output_bytes

    def give(self, name: bytes, *, pinned: bool) -> None:
        """Count one user less; what nobody uses may go, at once if nobody can find it."""
        unit = self._units[name]
        unit.users -= 1
        unit.pins -= pinned
        if pinned and not unit.pins:
            self.pinned_bytes -= unit.kv_bytes
        if not unit.users:
            self._idle[name] = None
            self._idle.move_to_end(name, last=not unit.private)
            self.idle_bytes += unit.kv_bytes
            self._idle_output_bytes += unit.output_bytes

    # Room.

    def reserve(self, session: HopSession) -> tuple[bool, list[HopAction]]:
        """Reserve KV for what the session does not share; what nobody uses goes for it.

        Where even that would not do, nothing goes, and the answer is False.
        """
        own = self.own(session)
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

    def own(self, session: HopSession) -> int:
        """Positions for which a session reserves KV of its own."""
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
        self._units[name] = _Unit(outputs, kv_bytes, nbytes)
        self._output_bytes += nbytes
        session.shared[index] = name
        if not self._move(session, name):
            del session.shared[index]
            self._forget(name)
            self._account.reserve(session.id, session.blocks, self.own(session))
            return actions
        self.take(name, pinned=session.keeps)
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
        self._account.reserve(session.id, session.blocks, self.own(session))
        return self._account.reserve(name, session.blocks, self.unit)

    def _unuse(self, session: HopSession, indices: Iterable[int]) -> None:
        """Of units that nobody uses any more, the ones that follow others are the first to go."""
        for index in sorted(indices, reverse=True):
            self.give(session.shared.pop(index), pinned=session.keeps)

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
