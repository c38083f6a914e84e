"""What a freshly loaded stage can do, found out by trying: share forwards, replay bit by bit.

What follows from the answers is `swarmd.engine.load`'s business. Nothing here knows a family.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from swarmd.engine import attention, tile_attention
from swarmd.engine.kv_cache import SEGMENT, RaggedCache
from swarmd.engine.stage import Batch, Segment, Stage
from swarmd.engine.view import View

TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Relative error up to which two ways to compute the same thing agree."""

PACKED_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""The same for one way to compute it, in other company: mostly not a bit differs."""

LEAK_SHARE = 0.25
"""A packed sequence must be nearer to itself alone than this share of what a leak would do."""


def why_not_ragged(stage: Stage) -> str:
    """Return why sessions cannot share a forward on this stage, or "" if they can.

    Two sequences are packed into common rows, in pieces, the second at the last positions that are
    served: where positions are scaled by the longest in a row, it shows there. Each must give what
    it gives alone, much nearer than if it saw the other one; and that is what it gives on
    transformers' own path.
    """
    with torch.inference_mode():
        try:
            return _Trial(stage).verdict()
        except Exception as error:
            return f"packing two sequences failed: {type(error).__name__}: {error}"


def kernel_error(dtype: torch.dtype) -> float:
    """Return by how much attention in the kernel differs from the plain way, relatively.

    A CPU or compiler that nobody has tried may get it wrong. Raises what the compiler raises.
    """
    generator = torch.Generator().manual_seed(12)
    query, key, value = (
        torch.randn(1, heads, 70, 8, generator=generator).to(dtype) for heads in (6, 2, 2)
    )
    outputs = []
    for way in (tile_attention.attend, attention.one_by_one):
        context = attention.RowContext([attention.RowSegment(RaggedCache(1), 0, 0, 70)], 0)
        outputs.append(way(context, 0, query, key, value, tile_attention.Rule())[0].flatten(1))
    return _difference(outputs[0].float(), outputs[1].float())


def why_not_apart(stage: Stage) -> str:
    """Return why the span cannot run without the blocks before it, or "" if it can.

    Whatever the model makes of the embeddings on the way to its blocks must not reach them: they
    are on another node. So with the same hidden states, other embeddings must change nothing.
    """
    view = stage.view(stage.span.start, stage.span.end, plain=True)
    rows = random_rows(stage, 5, seed=9)
    with torch.inference_mode():
        try:
            wanted = _run(view, rows, range(5))
        except Exception as error:
            return f"blocks {stage.span} do not run alone: {type(error).__name__}: {error}"
        if stage.is_first:
            return ""
        other = view.run(rows[None], use_cache=False, inputs_embeds=rows[None].flip(1) * 3)
    if torch.equal(other[0].float(), wanted):
        return ""
    return f"blocks {stage.span} depend on the embeddings, not only on the block before them"


class _Trial:
    """Two sequences, alone and packed."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._tolerance = TOLERANCE[stage.dtype]
        entry, exit = stage.span.start, stage.span.end
        self._plain = stage.view(entry, exit, plain=True)
        self._packed = stage.view(entry, exit)
        self._first = random_rows(stage, 7, seed=1)
        self._second = random_rows(stage, 6, seed=2)
        self._calls: list[list[int]] = []
        self._masked = False
        self._far = max(0, stage.info.max_model_len - len(self._second))

    def verdict(self) -> str:
        first, second = self._pack()
        calls = len(self._stage.span)
        if any(made != list(range(calls)) for made in self._calls):
            return (
                f"its {calls} blocks called the attention function {len(self._calls[0])} times: "
                "the family has attention of its own or recurrent blocks"
            )
        if self._masked:
            return "its blocks choose for themselves which positions they look at"
        limit = min(PACKED_TOLERANCE[self._stage.dtype], LEAK_SHARE * self._leak())
        return (
            self._compare(first, self._first, 4, 0, limit)
            or self._compare(second, self._second, 5, self._far, limit)
            or foreign_mask(self._stage)
        )

    def _pack(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Run both sequences in two rows: [first 0:4, second 0:5] and [second 5:6, first 4:7]."""
        caches = self._new_cache(), self._new_cache()
        a, b, far = self._first, self._second, self._far
        top = self._row([(caches[0], a[:4], 0, 0), (caches[1], b[:5], 0, far)])
        bottom = self._row([(caches[1], b[5:], 5, far), (caches[0], a[4:], 4, 0)])
        return torch.cat([top[:4], bottom[1:]]), torch.cat([top[4:], bottom[:1]])

    def _compare(
        self, packed: torch.Tensor, rows: torch.Tensor, cut: int, offset: int, limit: float
    ) -> str:
        """Compare a sequence with itself alone, in the same two pieces, and with the plain path."""
        cache = self._new_cache()
        pieces = [(cache, rows[:cut], 0, offset), (cache, rows[cut:], cut, offset)]
        alone = torch.cat([self._row([piece])[: len(piece[1])] for piece in pieces])
        plain = _run(self._plain, rows, range(offset, offset + len(rows)))
        for error, allowed, beside in (
            (_difference(packed, alone), limit, "beside another it"),
            (_difference(alone, plain), self._tolerance, "by the shared attention function it"),
        ):
            if not error <= allowed:
                return (
                    f"{beside} differs by {error:.1e} from a sequence alone (up to {allowed:.1e} "
                    "would do): its positions or attention depend on the row"
                )
        return ""

    def _new_cache(self) -> RaggedCache:
        cache = self._stage.new_cache()
        assert isinstance(cache, RaggedCache)
        return cache

    def _row(self, pieces: list[tuple[RaggedCache, torch.Tensor, int, int]]) -> torch.Tensor:
        """Run pieces (cache, rows, place in the cache, offset of its positions) as one row."""
        segments: list[attention.RowSegment] = []
        positions: list[int] = []
        start = 0
        for cache, rows, place, offset in pieces:
            segments.append(attention.RowSegment(cache, place, start, len(rows)))
            positions += range(place + offset, place + offset + len(rows))
            start += len(rows)
        context = attention.RowContext(segments, 0)
        with attention.row_context(context):
            output = _run(self._packed, torch.cat([rows for _, rows, _, _ in pieces]), positions)
        self._calls.append(context.calls)
        self._masked |= context.masked
        return output

    def _leak(self) -> float:
        """How much the second sequence would change if it saw the first."""
        begin, together = len(self._first), torch.cat([self._first, self._second])
        seen = _run(self._plain, together, range(len(together)))[begin:]
        unseen = _run(self._plain, self._second, range(begin, len(together)))
        return _difference(seen, unseen)


def _run(view: View, rows: torch.Tensor, positions: Any) -> torch.Tensor:
    """Run one row without a cache; return all hidden states or logits, (rows, width)."""
    where = torch.tensor([list(positions)], device=rows.device)
    return view.run(rows[None], position_ids=where, use_cache=False)[0].float()


def _difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Median over rows of the relative error; the first row sees only itself and says nothing.

    The median, since a row may be sent to another expert by the last bit of its scores.
    """
    error = (got - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-20)
    return float(error[1:].median())


def random_rows(stage: Stage, count: int, seed: int) -> torch.Tensor:
    """Return input for the stage: ids (count,) or hidden states (count, hidden_size)."""
    generator = torch.Generator().manual_seed(seed)
    if stage.is_first:
        ids = torch.randint(0, stage.info.vocab_size, (count,), generator=generator)
        return ids.to(stage.device)
    rows = torch.randn(count, stage.hidden_size, generator=generator)
    return rows.to(stage.device, stage.dtype)


_PROBE = "swarmd_probe"
_PROBING = threading.Lock()
"""Functions are registered for the whole process, and another stage may be loading."""

MaskFunction = Callable[..., Any]


@dataclass(slots=True)
class _Masks:
    """The masks that a model asked for, and which of them each block was given."""

    made: list[MaskFunction] = field(default_factory=list)
    used: list[tuple[int, int, int]] = field(default_factory=list)
    """(block, index into `made` or -1, sliding window or 0)."""


def foreign_mask(stage: Stage) -> str:
    """Return why a block's mask is not causal with the window it asks for, or "" if it is.

    Some families put a rule only into the mask, which a packed row never builds; it would show only
    in sequences longer than the rule's reach, so the rule is asked instead of tried.
    """
    masks = _Masks()
    entry, exit = stage.span.start, stage.span.end
    view = View(stage.model, stage.layout, stage.span, entry, exit, _PROBE)
    with _PROBING:
        _register_probe(masks)
        _run(view, random_rows(stage, 3, seed=3), range(3))
    for block, index, window in masks.used:
        if index >= 0 and (odd := _odd_pair(masks.made[index], window)):
            return (
                f"block {entry + block} masks position {odd[1]} from {odd[0]} in a way of its own "
                f"(its window is {window or 'unlimited'})"
            )
    return ""


def _register_probe(masks: _Masks) -> None:
    """Register an attention that notes which mask it was given; masks carry their number."""

    def make_mask(*, mask_function: MaskFunction, **sizes: Any) -> torch.Tensor:
        masks.made.append(mask_function)
        shape = (1, 1, int(sizes["q_length"]), int(sizes["kv_length"]))
        return torch.full(shape, float(len(masks.made) - 1), device=sizes.get("device"))

    def note(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        index = -1 if attention_mask is None else int(attention_mask.flatten()[0])
        masks.used.append((int(module.layer_idx), index, sliding_window or 0))  # type: ignore[arg-type]
        return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None

    AttentionMaskInterface.register(_PROBE, make_mask)
    AttentionInterface.register(_PROBE, note)


def _odd_pair(mask: MaskFunction, window: int) -> tuple[int, int] | None:
    """Return a (query, key) pair that the mask treats differently from a causal window."""
    reach = [0, 1, 2, *(1 << n for n in range(2, 18)), window - 1, window, window + 1, -1, -5]
    for query in (131_071, 262_144 + 77):
        for distance in reach:
            key = query - distance
            seen = distance >= 0 and (not window or distance < window)
            zero = torch.tensor(0)
            if bool(mask(zero, zero, torch.tensor(query), torch.tensor(key))) != seen:
                return query, key
    return None


def can_continue_in_chunks(stage: Stage) -> bool:
    """Whether a sequence in two chunks gives what it gives in one.

    Not so where a family forgets its recurrent state when several rows continue a sequence.
    """
    rows = random_rows(stage, 9, seed=7)
    whole = _advance(stage, stage.new_cache(), rows, 0).float()
    cache = stage.new_cache()
    got = torch.cat([_advance(stage, cache, rows[:4], 0), _advance(stage, cache, rows[4:], 4)])
    return _difference(got.float()[3:], whole[3:]) <= TOLERANCE[stage.dtype]


def sessions_stay_apart(stage: Stage) -> bool:
    """Whether a session goes on as if alone when another one ran in between."""
    rows = random_rows(stage, 8, seed=8)
    outputs = []
    for disturbed in (False, True):
        cache, other = stage.new_cache(), stage.new_cache()
        _advance(stage, cache, rows[:4], 0)
        if disturbed:
            _advance(stage, other, rows[3:], 0)
        outputs.append(_advance(stage, cache, rows[4:6], 4).float())
    return _difference(outputs[1], outputs[0]) <= TOLERANCE[stage.dtype]


@dataclass(frozen=True, slots=True)
class KVSize:
    """What a session's KV takes over the whole span."""

    per_token: int
    fixed: int
    blocks: tuple[tuple[int, int, int] | None, ...] = ()
    """As `Stage.kv_sizes`."""


def measure_kv(stage: Stage) -> KVSize:
    """Run a few positions and weigh the cache: bytes per position, and bytes however short."""
    cache = stage.new_cache()
    _advance(stage, cache, random_rows(stage, 4, seed=4), 0)
    if isinstance(cache, RaggedCache):
        per_token = sum(block.nbytes // max(1, block.capacity) for block in cache.blocks)
        return KVSize(per_token, 0, tuple(block.sizes for block in cache.blocks))
    first = int(cache.nbytes)
    _advance(stage, cache, random_rows(stage, 4, seed=4), 4)
    per_token = (int(cache.nbytes) - first) // 4
    return KVSize(per_token, max(0, first - 4 * per_token))


def is_replay_exact(stage: Stage) -> bool:
    """Whether replaying gives the same bits, whatever else runs beside it.

    A prompt is computed in chunks and some positions one by one. Then the same again as a repair
    does it: the chunks beside another session, the single positions in one row of one-token
    segments. In float32 differences are of no consequence, so the answer is always yes; where the
    number of rows decides how a product is computed, no trial covers them all, so it is always no.
    """
    if stage.dtype == torch.float32:
        return True
    if stage.device.type != "cpu":
        return False
    rows = random_rows(stage, 20, seed=5)
    first, again, mate = stage.new_cache(), stage.new_cache(), stage.new_cache()
    wanted = [_advance(stage, first, rows[:8], 0), _advance(stage, first, rows[8:13], 8)]
    wanted += [_advance(stage, first, rows[p : p + 1], p) for p in range(13, 20)]
    other = random_rows(stage, 24, seed=6)
    got = [
        _run_pieces(stage, [(mate, 0, other[:3]), (again, 0, rows[:8])])[3:],
        _run_pieces(stage, [(again, 8, rows[8:13]), (mate, 3, other[3:])])[:5],
        _run_pieces(stage, [(again, p, rows[p : p + 1]) for p in range(13, 20)]),
    ]
    return torch.equal(torch.cat(wanted), torch.cat(got))


CHUNKS = ((64, 1, 5), (1, 2, 40, 27))
"""Ways to cut 70 positions, which reach into a second tile of KV."""


def is_chunk_exact(stage: Stage) -> bool:
    """Whether a prompt gives the same bits in whatever chunks, and after a shared prefix.

    Then a chunk may be as long as the load allows, and what was cached stands for what would be
    computed. In float32 differences are of no consequence, so the answer is always yes; elsewhere
    than on a CPU it is no, as above.
    """
    if stage.dtype == torch.float32:
        return True
    if stage.device.type != "cpu":
        return False
    total = sum(CHUNKS[0])
    if not stage.shares_prefixes or stage.info.max_model_len < total:
        return False
    rows, other = random_rows(stage, total, seed=10), random_rows(stage, total, seed=11)
    first = stage.new_cache()
    wanted = _advance(stage, first, rows, 0)
    for chunks in CHUNKS:
        again, mate = stage.new_cache(), stage.new_cache()
        outputs, start = [], 0
        for count in chunks:
            piece = slice(start, start + count)
            output = _run_pieces(stage, [(mate, start, other[piece]), (again, start, rows[piece])])
            outputs.append(output[count:])
            start += count
        if not torch.equal(torch.cat(outputs), wanted):
            return False
    return torch.equal(_after_prefix(stage, first, rows), wanted[SEGMENT:])


def _after_prefix(stage: Stage, whole: Any, rows: torch.Tensor) -> torch.Tensor:
    """Compute the rows after the first tile, which is taken from a session that has it."""
    cache = stage.new_cache()
    assert isinstance(cache, RaggedCache)
    cache.attach([whole.freeze(0, SEGMENT)])
    return _advance(stage, cache, rows[SEGMENT:], SEGMENT)


def _advance(stage: Stage, cache: Any, rows: torch.Tensor, position: int) -> torch.Tensor:
    return _run_pieces(stage, [(cache, position, rows)])


def _run_pieces(stage: Stage, pieces: list[tuple[Any, int, torch.Tensor]]) -> torch.Tensor:
    """Run (cache, position, rows) together; return the outputs of all rows."""
    segments = tuple(Segment(cache, at, len(rows)) for cache, at, rows in pieces)
    rows = torch.cat([rows for _, _, rows in pieces])
    entry, exit = stage.span.start, stage.span.end
    ids, hidden = (rows, None) if entry == 0 else (None, rows)
    return stage.forward(Batch(entry, exit, segments, ids, hidden, tuple(range(len(rows)))))
