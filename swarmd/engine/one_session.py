"""A session's state on the path of one session per forward: transformers' own cache.

How it is run is `swarmd.engine.runners`' business.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from swarmd.engine.module_state import Saved


class OneSessionCache:
    """A session's state on the path of one session per forward: transformers' own cache."""

    __slots__ = ("left_on_modules", "length", "state", "stretch")

    def __init__(self) -> None:
        self.length = 0
        self.state: Any = None
        self.stretch: tuple[int, int] | None = None
        """The blocks [entry, exit) that `state` belongs to."""
        self.left_on_modules: Saved = []
        """See `swarmd.engine.module_state`."""

    @property
    def nbytes(self) -> int:
        left = [value for _, _, value in self.left_on_modules]
        return sum(tensor.nbytes for tensor in _tensors_in([self.state, left]))

    def truncate(self, length: int) -> int:
        """See `SequenceCache`. Recurrent states and full sliding windows start again from 0."""
        removed = self.length - max(0, min(self.length, length))
        if removed and not self._crop(removed):
            removed = self.length
        if removed == self.length:
            self.state, self.stretch, self.left_on_modules = None, None, []
        self.length -= removed
        return self.length

    def _crop(self, removed: int) -> bool:
        """Forget the last positions, if the state allows it."""
        if self.left_on_modules:
            return False
        try:
            self.state.crop(-removed)
        except (RuntimeError, ValueError, AttributeError):
            return False
        return True


def _tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Every tensor that a cache holds, in its layers, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
    elif type(value).__module__.startswith("transformers."):
        yield from _tensors_in(vars(value))
