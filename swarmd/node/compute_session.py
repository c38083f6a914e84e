"""What the compute thread keeps of a session: its KV, and what is to be done for it."""

from __future__ import annotations

from collections import deque

from swarmd.engine.kv_cache import SEGMENT, RaggedCache, SequenceCache
from swarmd.engine.sampler import Sampler
from swarmd.pipeline import events as ev


class ComputeSession:
    """A session of the executor's."""

    __slots__ = ("broken", "cache", "came", "ops", "parts", "sampler")

    def __init__(self, cache: SequenceCache) -> None:
        self.cache = cache
        self.ops: deque[ev.Submit | ev.Truncate | ev.Import] = deque()
        self.came: deque[float] = deque()
        """When each submit came that is in `ops`."""
        self.parts: list[ev.Computed] = []
        """What has been computed of the first of them, if it is computed in parts."""
        self.sampler: Sampler | None = None
        self.broken: Exception | None = None
        """Why its KV cannot be used any more: its next step fails with that."""

    @property
    def ragged(self) -> RaggedCache:
        """Its cache, where stages share prefixes."""
        assert isinstance(self.cache, RaggedCache)
        return self.cache

    def give_back(self) -> None:
        """Let go of what its KV had grown by for a step that failed."""
        if isinstance(self.cache, RaggedCache):
            for block in self.cache.blocks:
                block.keep(-(-self.cache.length // SEGMENT))
