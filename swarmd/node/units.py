"""KV that sessions share, as the compute thread holds it.

Which units there are, and who begins with which, is `swarmd.pipeline.prefix_index`'s decision.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from swarmd.engine.kv_cache import KVSegment, RaggedCache
from swarmd.pipeline import events as ev

log = logging.getLogger(__name__)


class Units:
    """Shared units by name. One that could not be made is known by what was in the way."""

    def __init__(self) -> None:
        self._held: dict[bytes, KVSegment | str] = {}
        """Or the reason in words: an error would keep what its frames hold, the session's KV."""

    def freeze(self, cache: RaggedCache, op: ev.Freeze) -> None:
        """Keep positions of a session. Raises nothing: the session itself has lost nothing.

        What is queued does not touch these positions: they are computed and stay.
        """
        try:
            self._held[op.unit] = cache.freeze(op.start, op.end)
        except Exception as error:
            reason = self._held[op.unit] = f"{type(error).__name__}: {error}"
            log.error("positions %d to %d could not be shared: %s", op.start, op.end, reason)

    def attach(self, cache: RaggedCache, op: ev.Attach) -> None:
        """Begin a session with units. Raises what was in the way of one of them, or of this."""
        cache.attach([_there(self._held, unit) for unit in op.units], op.length)

    def drop(self, unit: bytes) -> None:
        self._held.pop(unit, None)

    def clear(self) -> None:
        self._held.clear()


def _there(held: Mapping[bytes, KVSegment | str], unit: bytes) -> KVSegment:
    found = held[unit]
    if isinstance(found, str):
        # As if memory had run out: the hop gives up what nobody uses, this unit as well.
        raise MemoryError(f"a shared prefix could not be kept: {found}")
    return found
