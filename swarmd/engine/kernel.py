"""Attention over tiles of keys and values in machine code, for CPUs: written in numba.

Everything is per query row: a row meets the tiles of its session in order, keeps a running maximum
and a running sum, and what it gets depends on nothing else. So neither who shares a batch, nor the
chunks a prompt came in, nor who shares the tiles changes a bit.

Which rows meet which tiles is planned in `swarmd.engine.tile_attention`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np

from swarmd.engine import simd
from swarmd.engine.simd import LANES

TILE = simd.ROW
"""Positions in a tile of keys and values."""

ROWS = 64
"""Query rows, over all heads of a KV head, that meet a tile together."""

_FLOAT_ROW, _PAIR_ROW = 4 * TILE, 2 * TILE
"""Bytes of a row of scores, and of weights as pairs."""

_MASKED, _LOWEST = np.float32(-np.inf), np.float32(-1e30)
"""The score of what a row may not see, and the maximum before the first tile. Their difference is
no number's exponent: a tile that is masked as a whole has weights of exactly 0."""

_LOG2E = np.float32(1.4426950408889634)

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Have numba compile a function at its first call."""
    return cast(F, numba.njit(nogil=True)(function))


def kept(function: F) -> F:
    """The same, and the result is kept on disk if there is a place for it.

    numba sees by itself when this file has changed, and other CPUs; `simd` it is told about.
    """
    function.__qualname__ += simd.DIGEST
    try:
        return cast(F, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:
        return compiled(function)


class Shape(NamedTuple):
    """What one block computes with. Widths are elements, `steps` and `width` lanes."""

    pairs: bool
    heads: int
    kv_heads: int
    dim: int
    value_dim: int
    steps: int
    """Lanes of a query or key."""
    width: int
    """Lanes of a value: its elements, up to the next multiple of `LANES`."""
    window: int
    """Positions that a row sees, itself included; 0 is all."""


class _Scratch(NamedTuple):
    """Where the rows that are being computed keep what they have: addresses, and arrays."""

    memory: Any
    """What the addresses point into: an array lives as long as something refers to it."""
    queries: int
    scores: int
    weights: int
    sums: int
    top: Any
    total: Any
    position: Any


@kept
def write(
    shape: Shape, key: int, value: int, pieces: np.ndarray, keys: np.ndarray, values: np.ndarray
) -> None:
    """Put rows at `key` (rows, kv_heads, dim) and `value` into their tiles.

    `pieces` are (first row, rows, first position, where its tiles begin in `keys` and `values`).
    """
    size = 2 if shape.pairs else 4
    for piece in range(pieces.shape[0]):
        for number in range(pieces[piece, 1]):
            row, position = pieces[piece, 0] + number, pieces[piece, 2] + number
            tile, place = pieces[piece, 3] + position // TILE, position % TILE
            for head in range(shape.kv_heads):
                source = key + (row * shape.kv_heads + head) * shape.dim * size
                target = keys[tile] + head * shape.steps * TILE * 4
                _scatter(shape, source, target, shape.dim, place)
                source = value + (row * shape.kv_heads + head) * shape.value_dim * size
                target = values[tile] + head * shape.width * TILE * size
                _insert(shape, source, target, place)


@compiled
def _scatter(shape: Shape, source: int, target: int, dim: int, place: int) -> None:
    """Write one key into column `place` of a tile (steps, TILE) of lanes."""
    if shape.pairs:
        halves = numba.carray(simd.pointer(source), (dim,), np.uint16)
        out = numba.carray(simd.pointer(target), (shape.steps * TILE * 2,), np.uint16)
        for j in range(dim):
            out[(j // 2 * TILE + place) * 2 + j % 2] = halves[j]
    else:
        floats = numba.carray(simd.pointer(source), (dim,), np.uint32)
        lanes = numba.carray(simd.pointer(target), (dim * TILE,), np.uint32)
        for j in range(dim):
            lanes[j * TILE + place] = floats[j]


@compiled
def _insert(shape: Shape, source: int, target: int, place: int) -> None:
    """Write one value into row `place` of a tile; of pairs, two rows lie side by side."""
    dim, width = shape.value_dim, shape.width
    if shape.pairs:
        halves = numba.carray(simd.pointer(source), (dim,), np.uint16)
        out = numba.carray(simd.pointer(target), (TILE * width,), np.uint16)
        for j in range(dim):
            out[(place // 2 * width + j) * 2 + place % 2] = halves[j]
    else:
        floats = numba.carray(simd.pointer(source), (dim,), np.uint32)
        lanes = numba.carray(simd.pointer(target), (TILE * width,), np.uint32)
        for j in range(dim):
            lanes[place * width + j] = floats[j]


@kept
def attend(
    shape: Shape,
    query: int,
    out: int,
    members: np.ndarray,
    groups: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    sinks: np.ndarray,
    scale: np.float32,
    softcap: np.float32,
    first: int,
    last: int,
) -> None:
    """Attend rows at `query` (rows, heads, dim), into `out` (rows, heads, value_dim).

    `members` are (first row, rows, first position, where its tiles begin, tiles), `groups` (first
    member, end, leading tiles that all have in common), `sinks` one per head or empty. Works are
    numbered group by group, KV head by KV head: those in `[first, last)` are done.
    """
    scratch_bytes = ROWS * (4 * shape.steps + 2 * _FLOAT_ROW + 4 * shape.width) + 64
    memory = np.empty(scratch_bytes, np.uint8)
    queries = (memory.ctypes.data + 63) // 64 * 64
    scores = queries + ROWS * 4 * shape.steps
    weights = scores + ROWS * _FLOAT_ROW
    scratch = _Scratch(
        memory,
        queries,
        scores,
        weights,
        weights + ROWS * _FLOAT_ROW,
        np.empty(ROWS, np.float32),
        np.empty(ROWS, np.float32),
        np.empty(ROWS, np.int64),
    )
    for work in range(first, last):
        group, head = work // shape.kv_heads, work % shape.kv_heads
        begin, end, shared = groups[group, 0], groups[group, 1], groups[group, 2]
        count = _begin(shape, scratch, query, members[begin:end], head)
        tile = shared
        for member in range(begin, end):
            tile = min(tile, _first_seen(shape, members[member, 2]))
        tiles = members[begin, 3]
        _meet(shape, scratch, keys, values, tiles, tile, shared, head, 0, count, scale, softcap)
        row = 0
        for member in range(begin, end):
            rows = members[member, 1] * (shape.heads // shape.kv_heads)
            tile = max(shared, _first_seen(shape, members[member, 2]))
            tiles, until = members[member, 3], members[member, 4]
            _meet(
                shape,
                scratch,
                keys,
                values,
                tiles,
                tile,
                until,
                head,
                row,
                row + rows,
                scale,
                softcap,
            )
            row += rows
        _finish(shape, scratch, out, members[begin:end], head, sinks)


@compiled
def _first_seen(shape: Shape, position: int) -> int:
    """Return the first tile that the row at a position sees anything of."""
    return max(0, position + 1 - shape.window) // TILE if shape.window > 0 else 0


@compiled
def _begin(shape: Shape, scratch: _Scratch, query: int, members: np.ndarray, head: int) -> int:
    """Gather the queries of a KV head, one after the other; return how many there are."""
    group, size = shape.heads // shape.kv_heads, 2 if shape.pairs else 4
    halves = shape.dim * size // 2
    count = 0
    for member in range(members.shape[0]):
        for number in range(members[member, 1]):
            row = (members[member, 0] + number) * shape.heads + head * group
            for q in range(group):
                source = query + (row + q) * shape.dim * size
                target = scratch.queries + count * 4 * shape.steps
                given = numba.carray(simd.pointer(source), (halves,), np.uint16)
                taken = numba.carray(simd.pointer(target), (2 * shape.steps,), np.uint16)
                for j in range(halves):
                    taken[j] = given[j]
                for j in range(halves, 2 * shape.steps):
                    taken[j] = 0
                scratch.top[count] = _LOWEST
                scratch.total[count] = np.float32(0)
                scratch.position[count] = members[member, 2] + number
                count += 1
    sums = numba.carray(simd.pointer(scratch.sums), (count * shape.width,), np.float32)
    for j in range(count * shape.width):
        sums[j] = np.float32(0)
    return count


@compiled
def _meet(
    shape: Shape,
    scratch: _Scratch,
    keys: np.ndarray,
    values: np.ndarray,
    tiles: int,
    tile: int,
    until: int,
    head: int,
    begin: int,
    end: int,
    scale: np.float32,
    softcap: np.float32,
) -> None:
    """Have rows `[begin, end)` meet tiles `[tile, until)` of those that begin at `tiles`."""
    key_bytes = shape.steps * TILE * 4
    value_bytes = shape.width * (_PAIR_ROW if shape.pairs else _FLOAT_ROW)
    for number in range(tile, until):
        _score(shape, scratch, keys[tiles + number] + head * key_bytes, begin, end)
        following = tiles + min(number + 1, until - 1)
        for row in range(begin, end):
            _fetch(keys[following] + head * key_bytes, key_bytes, row - begin, end - begin)
            _weigh_row(shape, scratch, row, number * TILE, scale, softcap)
            _fetch(values[following] + head * value_bytes, value_bytes, row - begin, end - begin)
        _add_values(shape, scratch, values[tiles + number] + head * value_bytes, begin, end)


@compiled
def _fetch(tile: int, nbytes: int, part: int, parts: int) -> None:
    """Ask for a part of the tile that comes next: all at once would be more than can be under way.

    On the machine where this was tried, it takes a quarter off a step at long contexts.
    """
    size = -(-nbytes // (64 * parts)) * 64
    simd.fetch(tile + part * size, max(0, min(size, nbytes - part * size)))


@compiled
def _score(shape: Shape, scratch: _Scratch, tile: int, begin: int, end: int) -> None:
    steps = shape.steps
    row = begin
    while row < end:
        scores = scratch.scores + row * _FLOAT_ROW
        queries = scratch.queries + row * 4 * steps
        if row + 4 <= end:
            if shape.pairs:
                simd.pair_scores_of_4(scores, _FLOAT_ROW, queries, 4 * steps, tile, 4 * TILE, steps)
            else:
                simd.scores_of_4(scores, _FLOAT_ROW, queries, 4 * steps, tile, 4 * TILE, steps)
            row += 4
        else:
            if shape.pairs:
                simd.pair_scores_of_1(scores, _FLOAT_ROW, queries, 4 * steps, tile, 4 * TILE, steps)
            else:
                simd.scores_of_1(scores, _FLOAT_ROW, queries, 4 * steps, tile, 4 * TILE, steps)
            row += 1


@compiled
def _weigh_row(
    shape: Shape, scratch: _Scratch, row: int, start: int, scale: np.float32, softcap: np.float32
) -> None:
    """Turn the scores of a row over the positions from `start` into weights."""
    scores = scratch.scores + row * _FLOAT_ROW
    factor = scale * _LOG2E
    if softcap > 0:
        simd.cap(scores, scale, softcap)
        factor = _LOG2E
    seen = scratch.position[row] + 1 - start
    unseen = seen - shape.window if shape.window > 0 else 0
    if seen < TILE or unseen > 0:
        places = numba.carray(simd.pointer(scores), (TILE,), np.float32)
        for j in range(max(0, seen), TILE):
            places[j] = _MASKED
        for j in range(min(unseen, TILE)):
            places[j] = _MASKED
    top = max(scratch.top[row], simd.largest(scores, factor))
    if top > scratch.top[row]:
        lower = np.exp2(scratch.top[row] - top)
        scratch.top[row] = top
        scratch.total[row] *= lower
        sums = numba.carray(
            simd.pointer(scratch.sums + row * 4 * shape.width), (shape.width,), np.float32
        )
        for j in range(shape.width):
            sums[j] *= lower
    if shape.pairs:
        weights = scratch.weights + row * _PAIR_ROW
        scratch.total[row] += simd.weigh_pairs(scores, weights, factor, top)
    else:
        weights = scratch.weights + row * _FLOAT_ROW
        scratch.total[row] += simd.weigh_floats(scores, weights, factor, top)


@compiled
def _add_values(shape: Shape, scratch: _Scratch, tile: int, begin: int, end: int) -> None:
    """Add the values of a tile (TILE, width) to the sums of rows, by their weights."""
    width = shape.width
    step, lanes = (_PAIR_ROW, TILE // 2) if shape.pairs else (_FLOAT_ROW, TILE)
    for start in range(0, width, 4 * LANES):
        wide = width - start >= 4 * LANES
        row = begin
        while row < end:
            sums = scratch.sums + (row * width + start) * 4
            weights = scratch.weights + row * step
            values = tile + start * 4
            if wide and row + 4 <= end:
                if shape.pairs:
                    simd.pair_sums_of_4(sums, 4 * width, weights, step, values, 4 * width, lanes)
                else:
                    simd.sums_of_4(sums, 4 * width, weights, step, values, 4 * width, lanes)
                row += 4
                continue
            for at in range(0, 4 * min(4 * LANES, width - start), 4 * LANES):
                if shape.pairs:
                    simd.pair_sums_of_1(sums + at, 0, weights, 0, values + at, 4 * width, lanes)
                else:
                    simd.sums_of_1(sums + at, 0, weights, 0, values + at, 4 * width, lanes)
            row += 1


@compiled
def _finish(
    shape: Shape, scratch: _Scratch, out: int, members: np.ndarray, head: int, sinks: np.ndarray
) -> None:
    """Divide by the sums of the weights, a sink's among them, and write the rows out."""
    group, dim = shape.heads // shape.kv_heads, shape.value_dim
    count = 0
    for member in range(members.shape[0]):
        for number in range(members[member, 1]):
            row = (members[member, 0] + number) * shape.heads + head * group
            for q in range(group):
                total = scratch.total[count]
                if sinks.size > 0:
                    total += np.exp2(sinks[head * group + q] * _LOG2E - scratch.top[count])
                place = simd.pointer(scratch.sums + count * 4 * shape.width)
                sums = numba.carray(place, (dim,), np.float32)
                for j in range(dim):
                    sums[j] /= total
                if shape.pairs:
                    words = numba.carray(place, (dim,), np.uint32)
                    halves = numba.carray(
                        simd.pointer(out + (row + q) * dim * 2), (dim,), np.uint16
                    )
                    for j in range(dim):
                        odd = (words[j] >> np.uint32(16)) & np.uint32(1)
                        halves[j] = np.uint16((words[j] + np.uint32(0x7FFF) + odd) >> np.uint32(16))
                else:
                    floats = numba.carray(
                        simd.pointer(out + (row + q) * dim * 4), (dim,), np.float32
                    )
                    for j in range(dim):
                        floats[j] = sums[j]
                count += 1
