"""Keys and values of a session as they go from one stage's tiles to another's.

When they go is `swarmd.pipeline.copies`' decision; called on the compute thread.
"""

from __future__ import annotations

import logging

import torch

from swarmd.core.errors import SessionError
from swarmd.core.frames import Payload
from swarmd.core.span import Span
from swarmd.engine import codec
from swarmd.engine.kv_cache import RaggedCache
from swarmd.engine.stage import Stage
from swarmd.pipeline.events import ComputeFailed, Export, Exported, Import, Imported

log = logging.getLogger(__name__)


def export(stage: Stage, cache: RaggedCache, op: Export) -> Exported:
    """Take positions out of a session's tiles."""
    try:
        tensors = cache.export(op.start, op.end)[_part(stage, op.blocks)]
        blocks = tuple({n: codec.to_payload(t) for n, t in block.items()} for block in tensors)
    except Exception:  # there may be no memory for it: the session itself goes on
        log.exception("KV could not be copied session=%s", op.session.hex()[:8])
        return Exported(op.session, op.ticket, op.start, None)
    return Exported(op.session, op.ticket, op.start, blocks)


def take_in(stage: Stage, cache: RaggedCache, op: Import) -> bool:
    """Put positions into a session's tiles; return whether they had to be converted for that.

    They are where a hop leaves whose precision nobody else has. Raises SessionError when they do
    not fit.
    """
    dtypes = {t.dtype for tensors in op.parts for t in tensors.values()}
    converted = {codec.TORCH_DTYPES[dtype] for dtype in dtypes} - {stage.dtype}
    if converted and not op.position:
        names = ", ".join(sorted(map(str, converted)))
        key = op.session.hex()[:8]
        log.warning("KV is converted session=%s from=%s to=%s", key, names, stage.dtype)
    part = _part(stage, op.blocks)
    for sizes, tensors in zip(stage.kv_sizes[part], op.parts, strict=True):
        if _sizes(tensors) != sizes:
            raise SessionError(f"KV of sizes {_sizes(tensors)} came to a block that has {sizes}")
    blocks: list[dict[str, torch.Tensor]] = [{} for _ in stage.kv_sizes]
    blocks[part] = [
        {name: codec.to_tensor(payload, stage.dtype) for name, payload in tensors.items()}
        for tensors in op.parts
    ]
    cache.import_(op.position, blocks)
    return bool(converted)


def imported(stage: Stage, cache: RaggedCache, op: Import) -> Imported | ComputeFailed:
    """Do `take_in`; one bad frame must not end the daemon."""
    try:
        return Imported(op.session, op.ticket, take_in(stage, cache, op))
    except Exception as error:
        log.exception("KV could not be taken in session=%s", op.session.hex()[:8])
        return ComputeFailed(op.session, op.ticket, reason_of(error))


def reason_of(error: Exception) -> str:
    """Name an error to the other side, in a line of bounded length."""
    return f"{type(error).__name__}: {error}"[:500]


def _part(stage: Stage, blocks: Span) -> slice:
    return slice(blocks.start - stage.span.start, blocks.end - stage.span.start)


def _sizes(tensors: dict[str, Payload]) -> tuple[int, int, int] | None:
    """KV heads, and the widths of a key and of a value; None for a block without KV."""
    if not tensors:
        return None
    key, value = tensors["key"].shape, tensors["value"].shape
    return (key[0], key[2], value[2]) if key[:2] == value[:2] else (key[0], key[2], -1)
