"""The rows of a microbatch: what the stage is given of the steps that run together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from swarmd.core.frames import Payload
from swarmd.core.span import Span
from swarmd.engine import codec
from swarmd.engine.batcher import Work
from swarmd.engine.kv_cache import SequenceCache
from swarmd.engine.stage import Batch, Segment
from swarmd.pipeline import events as ev


def batch_of(
    submits: Sequence[ev.Submit],
    caches: Sequence[SequenceCache],
    blocks: Span,
    dtype: torch.dtype,
    one: codec.OneRow,
) -> Batch:
    """Return the steps of `submits` over `blocks` end to end; `caches` are those of their sessions.

    Hidden states are brought to `dtype`. A single position is in `one`, until the next one comes.
    """
    segments: list[Segment] = []
    logits_at: list[int] = []
    row = 0
    for submit, cache in zip(submits, caches, strict=True):
        step = submit.step
        position = step.position
        for length in step.chunks:
            segments.append(Segment(cache, position, length))
            position += length
        for want in step.wants:
            logits_at.append(row + want - step.position)
        row += step.length
    return Batch(
        blocks.start,
        blocks.end,
        tuple(segments),
        token_ids=None if blocks.start else _token_ids(submits, row, one),
        hidden=_hidden(submits, row, dtype, one) if blocks.start else None,
        logits_at=tuple(logits_at),
    )


def _token_ids(submits: Sequence[ev.Submit], rows: int, one: codec.OneRow) -> torch.Tensor:
    if rows == 1:
        return one.token(submits[0].step.token_ids[0])
    ids = [token for submit in submits for token in submit.step.token_ids]
    return torch.tensor(ids, dtype=torch.long)


def _hidden(
    submits: Sequence[ev.Submit], rows: int, dtype: torch.dtype, one: codec.OneRow
) -> torch.Tensor:
    payloads: list[Payload] = []
    for submit in submits:
        assert submit.step.hidden is not None
        payloads.append(submit.step.hidden)
    return one.hidden(payloads[0]) if rows == 1 else codec.gather(payloads, dtype)


def work_of(key: bytes, submit: ev.Submit, rows: int | None) -> Work:
    """The next step of a session, or as much of one prompt's chunk as there are `rows` for."""
    step = submit.step
    chunks = step.chunks
    if rows is not None and len(chunks) == 1:
        chunks = (min(rows, chunks[0]),)
    return Work(
        key=key,
        position=step.position,
        chunks=chunks,
        entry=submit.blocks.start,
        exit=submit.blocks.end,
        tenant=submit.tenant,
    )
