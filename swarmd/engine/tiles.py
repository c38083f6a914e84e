"""Keys and values of one block, in tiles laid out for the kernel that attends to them.

Who shares tiles is `swarmd.engine.kv_cache`'s business, what is computed from them
`swarmd.engine.kernel`'s and `swarmd.engine.attention`'s.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from swarmd.core.errors import SessionError

SEGMENT = 64
"""Positions in a tile: storage grows by it, and whole tiles are what sessions can share."""

LANES = 16
"""Values are padded to a multiple of it."""


class BlockKV:
    """Tiles of `SEGMENT` positions from position 0 on.

    A lane is 32 bits: `pair` elements that are multiplied and added up together, 2 in bfloat16.
    Keys of a tile are `(kv_heads, dim / pair, SEGMENT, pair)`, so that the scores of consecutive
    positions come out side by side; values `(kv_heads, SEGMENT / pair, value_dim padded, pair)`,
    pairs of consecutive positions. What is not written yet is zero: a masked position has weight 0,
    and 0 times anything finite changes no bit.
    """

    __slots__ = ("_addresses", "keys", "sizes", "values")

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.sizes: tuple[int, int, int] | None = None
        """KV heads, and the widths of a key and of a value."""
        self._addresses: np.ndarray | None = None

    def write(self, key: torch.Tensor, value: torch.Tensor, position: int) -> None:
        """Store `(kv_heads, n, dim)` at positions `[position, position + n)`.

        Raises SessionError when this block holds nothing before them.
        """
        end = position + key.shape[1]
        self.grow(key, value, position, end)
        for tile in range(position // SEGMENT, -(-end // SEGMENT)):
            start = tile * SEGMENT
            first, last = max(position, start), min(end, start + SEGMENT)
            rows = slice(first - position, last - position)
            _set_keys(self.keys[tile], key[:, rows], first - start)
            _set_values(self.values[tile], value[:, rows], first - start)

    def grow(self, key: torch.Tensor, value: torch.Tensor, position: int, end: int) -> None:
        """Make room up to `end` for keys and values `(kv_heads, n, width)` like those given."""
        if position > self.capacity:
            raise SessionError(
                f"a step at position {position} came to a block that has room for {self.capacity}: "
                "its session, or the prefix that it shares, ran other blocks"
            )
        if end <= self.capacity:
            return
        heads, dim, value_dim = sizes = key.shape[0], key.shape[2], value.shape[2]
        if self.sizes not in (None, sizes):
            raise SessionError(f"keys and values of {sizes} came to a block that has {self.sizes}")
        self.sizes, self._addresses = sizes, None
        pair = pair_of(key)
        width = -(-value_dim // LANES) * LANES
        while self.capacity < end:
            self.keys.append(key.new_zeros(heads, -(-dim // pair), SEGMENT, pair))
            self.values.append(value.new_zeros(heads, SEGMENT // pair, width, pair))

    def read(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys `(kv_heads, n, dim)` and values of `[begin, end)`, which is not empty."""
        assert self.sizes is not None
        heads, dim, value_dim = self.sizes
        first, last = begin // SEGMENT, -(-end // SEGMENT)
        place = slice(begin - first * SEGMENT, end - first * SEGMENT)
        keys = torch.stack(self.keys[first:last], 1).permute(0, 1, 3, 2, 4)
        values = torch.stack(self.values[first:last], 1).permute(0, 1, 2, 4, 3)
        count = (last - first) * SEGMENT
        keys, values = keys.reshape(heads, count, -1), values.reshape(heads, count, -1)
        return keys[:, place, :dim], values[:, place, :value_dim]

    def own(self, tile: int) -> None:
        """Replace a tile that others may hold by a copy."""
        self.keys[tile] = self.keys[tile].clone()
        self.values[tile] = self.values[tile].clone()
        self._addresses = None

    def keep(self, tiles: int) -> None:
        """Drop all but the first tiles."""
        del self.keys[tiles:]
        del self.values[tiles:]
        self._addresses = None

    def part(self, first: int, last: int) -> BlockKV:
        """Return a block that holds the tiles `[first, last)` too."""
        part = BlockKV()
        part.sizes = self.sizes
        part.keys, part.values = self.keys[first:last], self.values[first:last]
        return part

    def extend(self, other: BlockKV) -> None:
        """Hold the tiles of another block after the own ones."""
        self.sizes = self.sizes or other.sizes
        self.keys += other.keys
        self.values += other.values
        self._addresses = None

    @property
    def addresses(self) -> np.ndarray:
        """Where the tiles are: (2, tiles), keys and values."""
        if self._addresses is None:
            pointers = [[tile.data_ptr() for tile in tiles] for tiles in (self.keys, self.values)]
            self._addresses = np.array(pointers, np.int64)
        return self._addresses

    @property
    def tiles(self) -> int:
        """How many are held."""
        return len(self.keys)

    @property
    def capacity(self) -> int:
        """Positions that there is room for."""
        return len(self.keys) * SEGMENT

    @property
    def nbytes(self) -> int:
        return sum(tile.nbytes for tile in (*self.keys, *self.values))


def pair_of(like: torch.Tensor) -> int:
    """Elements in a lane."""
    return max(1, 4 // like.element_size())


def _set_keys(tile: torch.Tensor, key: torch.Tensor, place: int) -> None:
    heads, count, dim = key.shape
    _, lanes, _, pair = tile.shape
    padded = functional.pad(key, (0, lanes * pair - dim)).view(heads, count, lanes, pair)
    tile[:, :, place : place + count] = padded.transpose(1, 2)


def _set_values(tile: torch.Tensor, value: torch.Tensor, place: int) -> None:
    pair = tile.shape[3]
    for odd in range(pair):
        # Positions `odd`, `odd + pair`, ... of the tile, as far as they are among the new ones.
        first = (odd - place) % pair
        rows = value[:, first::pair]
        start = (place + first) // pair
        tile[:, start : start + rows.shape[1], : value.shape[2], odd] = rows
