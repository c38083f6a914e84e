"""What a model's modules keep on themselves between forwards, swapped in and out per session.

Some families hold recurrent states there, and some position embeddings the longest position seen,
outside the cache that transformers hands around.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

Saved = list[tuple[dict[str, Any], str, Any]]
"""(attribute table of a module, name, value)."""


class ModuleState:
    """Watches the tensors and numbers that modules hold; weights are not among them."""

    def __init__(self, model: nn.Module) -> None:
        """Take the present values as those of a session that has not begun."""
        self._fresh: Saved = []
        for module in model.modules():
            for table in (module.__dict__, module._buffers):
                self._fresh += [(table, n, v) for n, v in table.items() if _can_be_state(v)]

    def put(self, saved: Saved) -> None:
        """Set what a session left; an empty list for a new session."""
        for table, name, value in saved:
            table[name] = value

    def take(self) -> Saved:
        """Return what the last forward changed, and undo it."""
        changed = [(t, n, t[n]) for t, n, fresh in self._fresh if t.get(n) is not fresh]
        if changed:
            for table, name, fresh in self._fresh:
                table[name] = fresh
        return changed


def _can_be_state(value: object) -> bool:
    return value is None or isinstance(value, torch.Tensor | int | float)
