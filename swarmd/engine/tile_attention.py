"""Attention of a whole microbatch at once on the CPU: plans which rows meet which tiles.

Sessions that share a prefix meet its tiles together, so what they share is read once for all. The
arithmetic is `swarmd.engine.kernel`'s; where it cannot be used, `swarmd.engine.attention` has a
plain way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from swarmd.engine.kv_cache import RaggedCache
from swarmd.engine.row import RowContext, RowSegment
from swarmd.engine.tiles import LANES, SEGMENT, pair_of
from swarmd.engine.workers import spread

try:
    from swarmd.engine import kernel
except ImportError:  # a platform that numba does not know
    kernel = None  # type: ignore[assignment]

DTYPES = (torch.float32, torch.bfloat16)

WORTH_A_THREAD = 1000
"""Meetings of a row with a tile, below which a second thread costs more than it brings."""

_NO_SINKS = np.empty(0, np.float32)


Member = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Rule:
    """How one block scores: everything that arrives as a keyword argument."""

    scaling: float | None = None
    window: int = 0
    """Positions that a row sees, itself included; 0 is all."""
    softcap: float = 0.0
    sinks: torch.Tensor | None = None
    """(heads,)"""

    @property
    def plain(self) -> bool:
        return not self.softcap and self.sinks is None


def available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for a device and a type."""
    return kernel is not None and device.type == "cpu" and dtype in DTYPES


def give_up() -> None:
    """Use the kernel no more in this process."""
    global kernel
    kernel = None  # type: ignore[assignment]


def usable(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether the kernel takes (1, heads, rows, dim) and (1, kv_heads, rows, dim)."""
    heads, kv_heads = query.shape[1], key.shape[1]
    return (
        available(query.device, query.dtype)
        and key.dtype == query.dtype
        and heads % kv_heads == 0
        and heads // kv_heads <= kernel.ROWS
    )


def attend(
    context: RowContext,
    block: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: Rule,
) -> torch.Tensor:
    """Store the keys and values of all segments in `block` of their caches, then attend.

    Takes and returns what `swarmd.engine.attention.ragged_attention` does.
    """
    shape = _shape(query, key, value, rule.window)
    group = shape.heads // shape.kv_heads
    plan: Plan | None = context.plans.get(group)
    if plan is None:
        plan = context.plans[group] = make_plan(context.segments, block, group)
    plan.make_room(block, key[0], value[0])
    query, key, value = (tensor[0].transpose(0, 1).contiguous() for tensor in (query, key, value))
    rows = query.shape[0]
    make = value.new_empty if plan.rows == rows else value.new_zeros
    out = make(1, rows, shape.heads, shape.value_dim)
    keys, values = plan.tables(block)
    kernel.write(shape, key.data_ptr(), value.data_ptr(), plan.pieces, keys, values)
    scaling = rule.scaling if rule.scaling is not None else float(shape.dim**-0.5)
    sinks = _NO_SINKS if rule.sinks is None else rule.sinks.detach().float().numpy()

    def work(first: int, last: int) -> None:
        kernel.attend(
            shape,
            query.data_ptr(),
            out.data_ptr(),
            plan.members,
            plan.groups,
            keys,
            values,
            sinks,
            np.float32(scaling),
            np.float32(rule.softcap),
            first,
            last,
        )

    spread(plan.shares(shape.kv_heads, torch.get_num_threads()), work)
    return out


def _shape(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int
) -> kernel.Shape:
    pair = pair_of(query)
    return kernel.Shape(
        pairs=pair == 2,
        heads=query.shape[1],
        kv_heads=key.shape[1],
        dim=query.shape[3],
        value_dim=value.shape[3],
        steps=-(-query.shape[3] // pair),
        width=-(-value.shape[3] // LANES) * LANES,
        window=window,
    )


class Plan:
    """Who meets whom in a microbatch: see `swarmd.engine.kernel` for the columns."""

    def __init__(
        self,
        caches: list[tuple[RaggedCache, int, int]],
        pieces: list[tuple[int, int, int, int]],
        groups: list[tuple[list[Member], int]],
    ) -> None:
        """`caches`: with the first position that is new, and the number of tiles needed."""
        members = [member for listed, _ in groups for member in listed]
        ends = np.cumsum([len(listed) for listed, _ in groups]).tolist()
        self.caches = caches
        self.rows = sum(piece[1] for piece in pieces)
        """Rows that belong to a segment."""
        self.pieces = np.array(pieces, np.int64)
        self.members = np.array(members, np.int64)
        self.groups = np.array(
            [(end - len(listed), end, s) for end, (listed, s) in zip(ends, groups, strict=True)],
            np.int64,
        )
        self._costs = [sum(m[1] * m[4] for m in listed) for listed, _ in groups]
        self._shares: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def make_room(self, block: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Have all tiles there that will be written in a block."""
        for held, position, tiles in self.caches:
            store = held.blocks[block]
            if len(store.keys) < tiles:
                store.grow(key, value, position, tiles * SEGMENT)

    def tables(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the addresses of the tiles of keys and of values in a block."""
        parts = [held.blocks[block].addresses[:, :tiles] for held, _, tiles in self.caches]
        keys, values = np.concatenate(parts, 1)
        return keys, values

    def shares(self, kv_heads: int, threads: int) -> list[tuple[int, int]]:
        """Cut the works, a group and a KV head each, into about equal shares for the threads."""
        made = self._shares.get((kv_heads, threads))
        if made is None:
            made = self._shares[kv_heads, threads] = self._cut(kv_heads, threads)
        return made

    def _cut(self, kv_heads: int, threads: int) -> list[tuple[int, int]]:
        costs = np.repeat(self._costs, kv_heads)
        works, total = len(costs), int(costs.sum())
        count = max(1, min(threads, works, total // WORTH_A_THREAD))
        cuts = np.searchsorted(costs.cumsum(), [total * n / count for n in range(1, count)])
        edges = [0, *(cuts + 1).tolist(), works]
        return [(a, b) for a, b in itertools.pairwise(edges) if a < b]


def make_plan(segments: Sequence[RowSegment], block: int, group: int) -> Plan:
    """Plan a microbatch of segments, `group` heads per KV head; `block` shows who shares tiles."""
    starts, caches = _table(segments)
    per = max(1, kernel.ROWS // group)
    pieces, alone, single = [], [], []
    for segment in segments:
        begin = starts[id(segment.cache)]
        pieces.append((segment.start, segment.length, segment.position, begin))
        if segment.length == 1 and per > 1:
            tiles = segment.cache.blocks[block].addresses[0, : segment.position // SEGMENT]
            single.append((_member(segment, 0, 1, begin), tiles))
        else:
            for offset in range(0, segment.length, per):
                count = min(per, segment.length - offset)
                alone.append(_member(segment, offset, count, begin))
    groups = [([member], 0) for member in alone]
    return Plan(caches, pieces, [*groups, *_gather(single, per)])


def _table(
    segments: Sequence[RowSegment],
) -> tuple[dict[int, int], list[tuple[RaggedCache, int, int]]]:
    """Return where the tiles of each cache begin in the tables, and what `Plan` wants of it."""
    needed: dict[int, tuple[RaggedCache, int, int]] = {}
    for segment in segments:
        tiles = -(-segment.end // SEGMENT)
        held, position, known = needed.get(id(segment.cache), (segment.cache, segment.position, 0))
        needed[id(held)] = held, position, max(known, tiles)
    starts, begin = {}, 0
    for key, (_, _, tiles) in needed.items():
        starts[key] = begin
        begin += tiles
    return starts, list(needed.values())


def _member(segment: RowSegment, offset: int, count: int, begin: int) -> Member:
    position = segment.position + offset
    return segment.start + offset, count, position, begin, -(-(position + count) // SEGMENT)


def _gather(
    single: list[tuple[Member, np.ndarray]], per: int
) -> Iterator[tuple[list[Member], int]]:
    """Yield groups of at most `per` single rows, with the leading tiles that all of them share.

    In the order of their tiles, those that share most are neighbours.
    """
    ordered = sorted(single, key=lambda item: item[1].astype(">i8").tobytes())
    listed: list[Member] = []
    shared, tiles = 0, np.empty(0, np.int64)
    for member, own in ordered:
        common = _common(tiles, own)
        # Who shares much less would have the others read theirs again.
        if listed and len(listed) < per and common and 2 * common >= shared:
            listed.append(member)
            shared = min(shared, common)
            continue
        if listed:
            yield listed, shared if len(listed) > 1 else 0
        listed, shared, tiles = [member], len(own), own
    if listed:
        yield listed, shared if len(listed) > 1 else 0


def _common(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading entries are equal."""
    count = min(len(a), len(b))
    differ = np.flatnonzero(a[:count] != b[:count])
    return int(differ[0]) if len(differ) else count
