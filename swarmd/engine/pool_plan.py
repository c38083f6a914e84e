"""Where the rows of a microbatch lie in pools of tiles, and which sessions attend together.

Made once per forward; the attention itself is `swarmd.engine.attention`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from swarmd.engine.pool import PooledKV, TilePool
from swarmd.engine.row import RowSegment
from swarmd.engine.tiles import SEGMENT

MOST_BYTES = 512 << 20
"""Of keys and values that are gathered at once, where several sessions attend together: the short
ones are filled up to the longest."""


Known = tuple[bytes, ...]
"""Equal for equal tables: the tiles of every segment's session."""


@dataclass(slots=True)
class Group:
    """Segments of a single row each that attend together."""

    pool: TilePool
    rows: torch.Tensor | slice
    """Where they are in the microbatch."""
    tiles: torch.Tensor
    """(segments, tiles)"""
    keys: int
    """Positions to look at in the tiles, from the first on."""
    hidden: torch.Tensor | None
    """(segments, keys): which of them a segment does not see; None if all see all."""
    _masks: dict[torch.dtype, torch.Tensor] = field(default_factory=dict)

    def mask(self, like: torch.Tensor) -> torch.Tensor | None:
        """Return the additive mask (segments, 1, 1, keys)."""
        if self.hidden is None:
            return None
        made = self._masks.get(like.dtype)
        if made is None:
            made = like.new_zeros(self.hidden.shape).masked_fill_(self.hidden, float("-inf"))
            made = self._masks[like.dtype] = made[:, None, None]
        return made


class PoolPlan:
    """What a microbatch needs to know of its places, once for all blocks that have the same."""

    def __init__(self, segments: Sequence[RowSegment], device: torch.device) -> None:
        self._segments, self._device = segments, device
        lengths = np.array([segment.length for segment in segments])
        self.longer = np.flatnonzero(lengths > 1).tolist()
        """Indices of the segments of several rows."""
        self._single = np.flatnonzero(lengths == 1)
        firsts = np.array([segment.position for segment in segments])
        self._ends = firsts + lengths
        self._end_list = self._ends.tolist()
        starts = np.cumsum(lengths) - lengths
        self._starts = starts
        self._owner = np.repeat(np.arange(len(segments)), lengths)
        self._positions = np.arange(int(lengths.sum())) - np.repeat(starts - firsts, lengths)
        self.rows = len(self._positions)
        """Of all segments."""
        self._blocks = [segment.cache.blocks for segment in segments]
        self._laid: dict[Known, tuple[np.ndarray, torch.Tensor]] = {}
        """Tables of tiles, and the places of all rows in them. Sessions mostly have the same tiles
        in all blocks, so there are few."""
        self._groups: dict[tuple[Known, int], list[Group]] = {}
        self._known: Known = ()

    def store(self, block: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store the keys and values `(kv_heads, rows, width)` of all segments in a block."""
        stores: list[PooledKV] = [blocks[block] for blocks in self._blocks]
        for segment, store, end in zip(self._segments, stores, self._end_list, strict=True):
            if end > store.capacity:
                store.grow(key, value, segment.position, end)
        self._known = known = tuple([store.known for store in stores])
        if known not in self._laid:
            table = _table(stores)
            tiles = table[self._owner, self._positions // SEGMENT]
            places = tiles * SEGMENT + self._positions % SEGMENT
            self._laid[known] = table, self._on_device(places)
        places = self._laid[known][1]
        keys, values = key[:, : self.rows], value[:, : self.rows]
        stores[0].pool.write(places, keys.transpose(0, 1), values.transpose(0, 1))

    def single(self, block: int, window: int) -> list[Group]:
        """Return the groups of single rows, for the block that was stored last."""
        if not len(self._single):
            return []
        pool: TilePool = self._blocks[0][block].pool
        groups = self._groups.get((self._known, window))
        if groups is None:
            table = self._laid[self._known][0]
            groups = self._groups[self._known, window] = self._make_groups(table, pool, window)
        for group in groups:
            group.pool = pool
        return groups

    def _make_groups(self, table: np.ndarray, pool: TilePool, window: int) -> list[Group]:
        """Cut the segments, shortest first, where filling up would take too much."""
        ends = self._ends[self._single]
        begins = np.maximum(0, ends - window) // SEGMENT if window else np.zeros_like(ends)
        counts = -(-ends // SEGMENT) - begins
        most = max(1, MOST_BYTES // pool.tile_bytes)
        groups, listed = [], list[int]()
        for index in np.argsort(counts, kind="stable").tolist():
            if listed and (len(listed) + 1) * counts[index] > most:
                groups.append(self._group(table, pool, window, np.array(listed), begins, counts))
                listed = []
            listed.append(index)
        groups.append(self._group(table, pool, window, np.array(listed), begins, counts))
        return groups

    def _group(
        self,
        table: np.ndarray,
        pool: TilePool,
        window: int,
        listed: np.ndarray,
        begins: np.ndarray,
        counts: np.ndarray,
    ) -> Group:
        listed = np.sort(listed)
        of = self._single[listed]
        begin, count = begins[listed], counts[listed]
        columns = np.arange(int(count.max()))
        wanted = np.minimum(begin[:, None] + columns, table.shape[1] - 1)
        tiles = np.where(columns < count[:, None], table[of[:, None], wanted], 0)
        # Positions within the gathered tiles, from the first that is seen to behind the last.
        first = np.maximum(0, self._ends[of] - window) if window else np.zeros_like(begin)
        first, end = first - begin * SEGMENT, self._ends[of] - begin * SEGMENT
        keys, hidden = int(end.max()), None
        if first.any() or (end != keys).any():
            keys = len(columns) * SEGMENT
            places = np.arange(keys)
            hidden = self._on_device((places < first[:, None]) | (places >= end[:, None]))
        starts = self._starts[of]
        in_a_row = (np.diff(starts) == 1).all()
        rows = slice(int(starts[0]), int(starts[-1]) + 1) if in_a_row else self._on_device(starts)
        return Group(pool, rows, self._on_device(tiles), keys, hidden)

    def _on_device(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(self._device, non_blocking=True)


def _table(stores: Sequence[PooledKV]) -> np.ndarray:
    """Return the tiles of each segment's session, (segments, tiles), filled up with tile 0."""
    table = np.zeros((len(stores), max(store.tiles for store in stores)), np.int64)
    for row, store in zip(table, stores, strict=True):
        row[: store.tiles] = store.indices
    return table
