"""Attention over a ragged row: the steps of many sessions end to end, each against its own KV.

Registered with transformers as the attention implementation `NAME`, so that the blocks themselves
stay unmodified. Which steps run together is `swarmd.engine.batcher`'s decision, and whether a model
really calls this function in every block is `swarmd.engine.probe`'s to find out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from swarmd.engine import tile_attention
from swarmd.engine.pool import PooledKV
from swarmd.engine.pool_plan import Group, PoolPlan
from swarmd.engine.row import RowContext, RowSegment, current, row_context
from swarmd.engine.tile_attention import Rule

__all__ = ["NAME", "RowContext", "RowSegment", "current", "ragged_attention", "row_context"]

NAME = "swarmd_ragged"


def ragged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attend each segment of the row to its own session only.

    `query` is (1, heads, rows, d), `key` (1, kv_heads, rows, d), `value` (1, kv_heads, rows, dv);
    the result is (1, rows, heads, dv). Rows of no segment (padding) come back as zeros.
    """
    context = current()
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    context.calls.append(layer)
    if attention_mask is not None:
        context.masked = True
    rule = Rule(scaling, sliding_window or 0, softcap or 0.0, s_aux)
    block = context.block_offset + layer
    if context.segments and isinstance(context.segments[0].cache.blocks[block], PooledKV):
        return pooled(context, block, query, key, value, rule), None
    if context.segments and tile_attention.usable(query, key):
        context.tiled += 1
        return tile_attention.attend(context, block, query, key, value, rule), None
    return one_by_one(context, block, query, key, value, rule), None


def one_by_one(
    context: RowContext,
    block: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: Rule,
) -> torch.Tensor:
    """Attend segment by segment, with torch's own operations: the plain way, and the witness.

    Takes and returns what `ragged_attention` does.
    """
    rows = query.shape[2]
    if len(context.segments) == 1 and context.segments[0].length == rows:
        return _attend_segment(context, 0, block, query, key, value, rule).transpose(1, 2)
    out = value.new_zeros(1, rows, query.shape[1], value.shape[3])
    for index, segment in enumerate(context.segments):
        start, end = segment.start, segment.start + segment.length
        result = _attend_segment(
            context,
            index,
            block,
            query[:, :, start:end],
            key[:, :, start:end],
            value[:, :, start:end],
            rule,
        )
        out[:, start:end] = result.transpose(1, 2)
    return out


def _attend_segment(
    context: RowContext,
    index: int,
    block: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: Rule,
) -> torch.Tensor:
    """Append this segment's keys and values, then attend: returns (1, heads, n, dv)."""
    segment = context.segments[index]
    segment.cache.blocks[block].write(key[0], value[0], segment.position)
    return _attend_held(context, index, block, query, rule)


def _attend_held(
    context: RowContext, index: int, block: int, query: torch.Tensor, rule: Rule
) -> torch.Tensor:
    """Attend a segment whose keys and values are in its cache: returns (1, heads, n, dv)."""
    segment = context.segments[index]
    store = segment.cache.blocks[block]
    end = segment.position + segment.length
    # Nothing before the first row's window can be seen by any row of this segment.
    begin = max(0, segment.position + 1 - rule.window) if rule.window else 0
    keys, values = (tensor[None] for tensor in store.read(begin, end))
    if rule.plain and segment.position == 0 and (not rule.window or rule.window >= end):
        return _fused(query, keys, values, None, rule.scaling, causal=segment.length > 1)
    mask = _mask(context, index, rule.window, begin, query)
    if rule.plain:
        return _fused(query, keys, values, mask, rule.scaling, causal=False)
    return _spelled_out(query, keys, values, mask, rule)


def pooled(
    context: RowContext,
    block: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    rule: Rule,
) -> torch.Tensor:
    """Attend the segments of single rows all at once, the longer ones one by one, from pools.

    Takes and returns what `ragged_attention` does.
    """
    plan: PoolPlan | None = context.plans.get(0)
    if plan is None:
        plan = context.plans[0] = PoolPlan(context.segments, query.device)
    plan.store(block, key[0], value[0])
    rows = query.shape[2]
    groups = plan.single(block, rule.window)
    if len(groups) == 1 and groups[0].rows == slice(0, rows):
        return _attend_group(groups[0], query, rule)[None]
    out = value.new_zeros(1, rows, query.shape[1], value.shape[3])
    for index in plan.longer:
        segment = context.segments[index]
        span = slice(segment.start, segment.start + segment.length)
        result = _attend_held(context, index, block, query[:, :, span], rule)
        out[:, span] = result.transpose(1, 2)
    for group in groups:
        out[0, group.rows] = _attend_group(group, query, rule)
    return out


def _attend_group(group: Group, query: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Attend segments of a single row each, of one group: returns (segments, heads, dv)."""
    keys, values = group.pool.gather(group.tiles)
    keys, values = keys[:, :, : group.keys], values[:, :, : group.keys]
    rows = query[0].transpose(0, 1)[group.rows, :, None]
    mask = group.mask(query)
    if rule.plain:
        return _fused(rows, keys, values, mask, rule.scaling, causal=False)[:, :, 0]
    return _spelled_out_rows(rows, keys, values, mask, rule)[:, :, 0]


def _mask(
    context: RowContext, index: int, window: int, begin: int, query: torch.Tensor
) -> torch.Tensor | None:
    """Return the additive mask (n, keys) of a segment, or None if every row sees every key."""
    segment = context.segments[index]
    if segment.length == 1:
        return None
    made = context.masks.get((index, window, begin))
    if made is None:
        made = causal_mask(segment.position, segment.length, begin, window, query)
        context.masks[index, window, begin] = made
    return made


def causal_mask(
    position: int, length: int, begin: int, window: int, like: torch.Tensor
) -> torch.Tensor:
    """Mask of rows `[position, position + length)` over keys `[begin, position + length)`."""
    rows = torch.arange(position, position + length, device=like.device)[:, None]
    keys = torch.arange(begin, position + length, device=like.device)[None, :]
    hidden = keys > rows
    if window:
        hidden |= keys <= rows - window
    return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def _fused(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    causal: bool,
) -> torch.Tensor:
    """Attention by torch's fused kernel; `causal` needs as many keys as queries."""
    heads, kv_heads, rows = query.shape[1], keys.shape[1], query.shape[2]
    if rows == 1:
        # One query: let the heads that share a KV head be the rows, so nothing is repeated.
        packed = query.reshape(-1, kv_heads, heads // kv_heads, query.shape[3])
        out = functional.scaled_dot_product_attention(
            packed, keys, values, attn_mask=mask, scale=scaling
        )
        return out.reshape(-1, heads, 1, values.shape[3])
    if mask is not None and query.is_cuda and heads != kv_heads:
        # No kernel there takes both a mask and fewer KV heads: torch would spell it all out.
        keys, values = (t.repeat_interleave(heads // kv_heads, 1) for t in (keys, values))
        kv_heads = heads
    return functional.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        is_causal=causal,
        scale=scaling,
        enable_gqa=heads != kv_heads,
    )


def _spelled_out(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    rule: Rule,
) -> torch.Tensor:
    """Attention in plain operations, for soft-capped scores and attention sinks.

    In slices of rows, since the scores of all heads are there at once.
    """
    heads, rows = query.shape[1], query.shape[2]
    step = max(1, MAX_SCORES // (heads * keys.shape[2]))
    slices = [
        _spelled_out_rows(
            query[:, :, start : start + step],
            keys,
            values,
            None if mask is None else mask[start : start + step],
            rule,
        )
        for start in range(0, rows, step)
    ]
    return slices[0] if len(slices) == 1 else torch.cat(slices, dim=2)


MAX_SCORES = 1 << 24
"""Scores that may be in memory at once: 64 MiB in float32."""


def _spelled_out_rows(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    rule: Rule,
) -> torch.Tensor:
    heads, kv_heads, rows = query.shape[1], keys.shape[1], query.shape[2]
    groups = heads // kv_heads
    packed = query.reshape(-1, kv_heads, groups * rows, query.shape[3])
    scale = rule.scaling if rule.scaling is not None else query.shape[3] ** -0.5
    scores = torch.matmul(packed, keys.transpose(2, 3)) * scale
    if rule.softcap:
        scores = torch.tanh(scores / rule.softcap) * rule.softcap
    scores = scores.view(-1, kv_heads, groups, rows, scores.shape[3])
    if mask is not None:
        scores = scores + (mask if mask.dim() == 2 else mask[:, :, None])
    weights = _softmax(scores, rule.sinks, kv_heads, groups).to(query.dtype)
    out = torch.matmul(weights.view(len(query), kv_heads, groups * rows, -1), values)
    return out.view(-1, heads, rows, values.shape[3])


def _softmax(
    scores: torch.Tensor, sinks: torch.Tensor | None, kv_heads: int, groups: int
) -> torch.Tensor:
    """Softmax over the keys of (n, kv_heads, groups, rows, keys); a sink only takes its share."""
    if sinks is None:
        return functional.softmax(scores, dim=-1, dtype=torch.float32)
    column = sinks.reshape(1, kv_heads, groups, 1, 1).expand(*scores.shape[:-1], 1)
    joined = torch.cat([scores, column.to(scores.dtype)], dim=-1)
    return functional.softmax(joined, dim=-1, dtype=torch.float32)[..., :-1]


def register() -> None:
    """Make `NAME` known to transformers. Calling it again changes nothing.

    No mask function is registered with it: for a name without one the model builds no masks at all.
    """
    AttentionInterface.register(NAME, ragged_attention)
