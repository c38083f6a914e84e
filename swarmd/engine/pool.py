"""Keys and values on an accelerator: the tiles of all sessions of one block lie in one tensor.

So one operation stores or fetches what many sessions have, however many they are. Who shares tiles
is `swarmd.engine.kv_cache`'s business, what is computed from them `swarmd.engine.attention`'s.
"""

from __future__ import annotations

import numpy as np
import torch

from swarmd.core.errors import SessionError
from swarmd.engine.tiles import SEGMENT

FIRST_TILES = 16
"""Tiles that a pool begins with."""
GROWTH = 1.5


def make_pools(count: int, device: torch.device) -> tuple[TilePool, ...]:
    """Return a pool for each of so many blocks, or none where tiles lie on their own."""
    return tuple(TilePool(device) for _ in range(count)) if pays(device) else ()


def pays(device: torch.device) -> bool:
    """Whether starting an operation costs more there than the operation, so that few must do."""
    return device.type != "cpu"


class TilePool:
    """The tiles of one block: keys `(tiles, SEGMENT, kv_heads, dim)` and values alike.

    Tile 0 is nobody's and stays zero: it fills up tables. Every other tile is zero when it is given
    out: a masked position has weight 0, and 0 times anything finite changes no bit.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sizes: tuple[int, int, int] | None = None
        """KV heads, and the widths of a key and of a value."""
        self.free: list[int] = []
        self._keys = self._values = torch.empty(0, SEGMENT, 0, 0)

    @property
    def keys(self) -> torch.Tensor:
        return self._keys

    @property
    def values(self) -> torch.Tensor:
        return self._values

    @property
    def tile_bytes(self) -> int:
        """Of keys and values."""
        return sum(t[:1].nbytes for t in (self._keys, self._values))

    def take(self, count: int, key: torch.Tensor, value: torch.Tensor) -> list[Tile]:
        """Return so many zeroed tiles, for keys and values `(kv_heads, n, width)` like those given.

        Raises SessionError when others are in here, torch.OutOfMemoryError when there is no room.
        """
        sizes = key.shape[0], key.shape[2], value.shape[2]
        if self.sizes not in (None, sizes):
            raise SessionError(f"keys and values of {sizes} came to a block that has {self.sizes}")
        if len(self.free) < count:
            self._enlarge(count - len(self.free), key, value)
        taken = [Tile(self, self.free.pop()) for _ in range(count)]
        places = self._on_device(np.array([tile.index for tile in taken]))
        self._keys.index_fill_(0, places, 0)
        self._values.index_fill_(0, places, 0)
        return taken

    def _enlarge(self, missing: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Move everything to larger tensors, one after the other: that much room is needed."""
        heads, dim, value_dim = key.shape[0], key.shape[2], value.shape[2]
        held = len(self._keys)
        least = max(held, 1) + missing
        count = max(least, FIRST_TILES, int(held * GROWTH))
        try:
            larger = self._moved(count, key, heads, dim, value_dim)
        except torch.OutOfMemoryError:
            if count == least:
                raise
            count = least
            larger = self._moved(count, key, heads, dim, value_dim)
        self._keys, self._values = larger
        self.sizes = heads, dim, value_dim
        self.free += range(count - 1, max(held, 1) - 1, -1)

    def _moved(
        self, count: int, like: torch.Tensor, heads: int, dim: int, value_dim: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        made = []
        with torch.inference_mode(False):  # so that they can be written to in and out of it
            for before, width in ((self._keys, dim), (self._values, value_dim)):
                shape = count, SEGMENT, heads, width
                after = torch.zeros(shape, dtype=like.dtype, device=self.device)
                if len(before):
                    after[: len(before)] = before
                made.append(after)
        return made[0], made[1]

    def write(self, places: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store `(n, kv_heads, width)` at places, each `tile * SEGMENT + position in the tile`."""
        self._keys.flatten(0, 1).index_copy_(0, places, keys)
        self._values.flatten(0, 1).index_copy_(0, places, values)

    def gather(self, tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the keys and values of a table `(n, tiles)`: `(n, kv_heads, positions, width)`."""
        count, flat = len(tiles), tiles.flatten()
        keys, values = (
            tensor.index_select(0, flat).view(count, -1, *tensor.shape[2:]).transpose(1, 2)
            for tensor in (self._keys, self._values)
        )
        return keys, values

    def copy(self, source: Tile, target: Tile) -> None:
        """Make one tile equal to another."""
        for tensor in (self._keys, self._values):
            tensor[target.index] = tensor[source.index]

    def _on_device(self, numbers: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(numbers).to(self.device, non_blocking=True)


class Tile:
    """One tile of a pool, which has it back when nobody holds this any more."""

    __slots__ = ("_pool", "index")

    def __init__(self, pool: TilePool, index: int) -> None:
        self._pool, self.index = pool, index

    def __del__(self) -> None:
        self._pool.free.append(self.index)


class PooledKV:
    """One block's tiles of one session, in a pool. Does what `BlockKV` does on a CPU."""

    __slots__ = ("_held", "_indices", "_known", "capacity", "pool")

    def __init__(self, pool: TilePool) -> None:
        self.pool = pool
        self._held: list[Tile] = []
        self._indices: np.ndarray | None = None
        self._known = b""
        self.capacity = 0
        """Positions that there is room for."""

    def _changed(self) -> None:
        self._indices, self._known, self.capacity = None, b"", len(self._held) * SEGMENT

    @property
    def sizes(self) -> tuple[int, int, int] | None:
        """KV heads, and the widths of a key and of a value."""
        return self.pool.sizes if self._held else None

    @property
    def tiles(self) -> int:
        """How many are held."""
        return len(self._held)

    @property
    def indices(self) -> np.ndarray:
        """Which tiles of the pool hold positions from 0 on."""
        if self._indices is None:
            self._indices = np.array([tile.index for tile in self._held], np.int64)
        return self._indices

    @property
    def known(self) -> bytes:
        """Equal for those with the same `indices`."""
        if not self._known:
            self._known = self.indices.tobytes()
        return self._known

    @property
    def nbytes(self) -> int:
        return len(self._held) * self.pool.tile_bytes if self._held else 0

    def write(self, key: torch.Tensor, value: torch.Tensor, position: int) -> None:
        """Store `(kv_heads, n, dim)` at positions `[position, position + n)`.

        Raises SessionError when this block holds nothing before them.
        """
        end = position + key.shape[1]
        self.grow(key, value, position, end)
        positions = np.arange(position, end)
        places = self.indices[positions // SEGMENT] * SEGMENT + positions % SEGMENT
        self.pool.write(
            torch.from_numpy(places).to(self.pool.device),
            key.transpose(0, 1).to(self.pool.device),
            value.transpose(0, 1).to(self.pool.device),
        )

    def grow(self, key: torch.Tensor, value: torch.Tensor, position: int, end: int) -> None:
        """Make room up to `end` for keys and values `(kv_heads, n, width)` like those given."""
        if position > self.capacity:
            raise SessionError(
                f"a step at position {position} came to a block that has room for {self.capacity}: "
                "its session, or the prefix that it shares, ran other blocks"
            )
        if end > self.capacity:
            self._held += self.pool.take(-(-end // SEGMENT) - len(self._held), key, value)
            self._changed()

    def read(self, begin: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys `(kv_heads, n, dim)` and values of `[begin, end)`, which is not empty."""
        first, last = begin // SEGMENT, -(-end // SEGMENT)
        table = torch.from_numpy(self.indices[None, first:last]).to(self.pool.device)
        keys, values = self.pool.gather(table)
        place = slice(begin - first * SEGMENT, end - first * SEGMENT)
        return keys[0, :, place], values[0, :, place]

    def own(self, tile: int) -> None:
        """Replace a tile that others may hold by a copy."""
        sizes = self.pool.sizes
        assert sizes is not None
        heads, dim, value_dim = sizes
        keys, values = self.pool.keys, self.pool.values
        like = keys.new_empty(heads, 0, dim), values.new_empty(heads, 0, value_dim)
        (copy,) = self.pool.take(1, *like)
        self.pool.copy(self._held[tile], copy)
        self._held[tile] = copy
        self._changed()

    def keep(self, tiles: int) -> None:
        """Drop all but the first tiles."""
        del self._held[tiles:]
        self._changed()

    def part(self, first: int, last: int) -> PooledKV:
        """Return a block that holds the tiles `[first, last)` too."""
        part = PooledKV(self.pool)
        part._held = self._held[first:last]
        part._changed()
        return part

    def extend(self, other: PooledKV) -> None:
        """Hold the tiles of another block after the own ones."""
        self._held += other._held
        self._changed()
