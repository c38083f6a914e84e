"""Which model families can be split, and the fixes that some of them need.

The only file that may name a family. Everything that can be found out by looking at the model
(`swarmd.engine.layout`) or by trying it (`swarmd.engine.probe`) is found there instead.
"""

from __future__ import annotations

from swarmd.core.errors import ModelError

UNSPLITTABLE: dict[str, str] = {}
"""Family (`model_type`) -> why its blocks cannot be served by different nodes."""


def refuse_unsplittable(model_type: str) -> None:
    """Raise ModelError when blocks of this family depend on more than the block before them."""
    reason = UNSPLITTABLE.get(model_type)
    if reason:
        raise ModelError(f"models of family {model_type!r} cannot be split into blocks: {reason}")
