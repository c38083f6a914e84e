"""Linear layers for CPUs that have no instructions for bfloat16.

The weights stay in bfloat16, which is what memory has to deliver at every step; they become float32
in registers, or in the first cache where many rows meet them. Sums are float32, rounded once.
"""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import torch
from torch import nn

from swarmd.engine.packed import PackedLinear
from swarmd.engine.tiles import LANES
from swarmd.engine.workers import equal_shares, spread

try:
    from swarmd.engine import panel_kernel as kernel
except ImportError:  # a platform that numba does not know
    kernel = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

TOLERANCE = 1e-2
"""Relative error of a product that is rounded to bfloat16."""

_NO_BIAS = np.empty(0, np.float32)


class PanelLinear(PackedLinear):
    """In panels of 32 outputs. A row's results have the same bits in any company of rows."""

    has_rows = True

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain)
        self._bias = _NO_BIAS
        if self.bias is not None:
            self._bias = np.zeros(len(self.packed) * kernel.COLUMNS, np.float32)
            self._bias[: self.out_features] = self.bias.detach().float().numpy()

    @staticmethod
    def _pack(weight: torch.Tensor) -> torch.Tensor:
        """Return (panels, in_features, lanes, 2); the last outputs are filled up with zeros."""
        outside, inside = weight.shape
        count = -(-outside // kernel.COLUMNS)
        packed = weight.new_zeros(count, inside, LANES, 2)
        whole = outside // kernel.COLUMNS * kernel.COLUMNS
        packed[: whole // kernel.COLUMNS] = _panels(weight[:whole])
        if whole < outside:
            last = weight.new_zeros(kernel.COLUMNS, inside)
            last[: outside - whole] = weight[whole:]
            packed[-1:] = _panels(last)
        return packed

    def _unpacked(self) -> torch.Tensor:
        rows = self.packed.permute(0, 3, 2, 1).reshape(-1, self.in_features)
        return rows[: self.out_features].contiguous()

    def embedding(self) -> nn.Module:
        return PanelEmbedding(self)

    def rows_of(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return the weights (..., in_features) of outputs (...), as an embedding does of ids."""
        panels, columns = outputs // kernel.COLUMNS, outputs % kernel.COLUMNS
        return self.packed[panels, :, columns % LANES, columns // LANES]

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        flat = rows.reshape(-1, self.in_features)
        out = rows.new_empty(*rows.shape[:-1], self.out_features)
        count = flat.shape[0]
        if not count:
            return out
        flat, row_bytes, depth_bytes = _parts(flat)

        def work(first: int, last: int) -> None:
            kernel.multiply(
                flat.data_ptr(),
                count,
                row_bytes,
                depth_bytes,
                self.packed.data_ptr(),
                self._bias,
                out.data_ptr(),
                self.in_features,
                self.out_features,
                first,
                last,
            )

        spread(equal_shares(len(self.packed), torch.get_num_threads()), work)
        return out


class PanelEmbedding(nn.Module):
    """An `nn.Embedding` whose weights are those of the head, and lie in its panels."""

    def __init__(self, head: PanelLinear) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = head.out_features, head.in_features
        self._head = [head]
        """In a list, since it is the head's owner that has it as a module."""

    @property
    def weight(self) -> torch.Tensor:
        """The weights (num_embeddings, embedding_dim), made anew at each call."""
        return self._head[0].weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return (..., embedding_dim) of ids (...)."""
        return self._head[0].rows_of(ids)


def _parts(rows: torch.Tensor) -> tuple[torch.Tensor, int, int]:
    """Return (rows, inside) in float32, and the bytes from row to row and from depth to depth.

    Many rows lie depth by depth where that comes out even: whole rows, a power of two apart, would
    drive each other out of the caches.
    """
    count, inside = rows.shape
    if count < kernel.BLOCK or inside % kernel.DEPTH:
        return rows.float().contiguous(), 4 * inside, 4 * kernel.DEPTH
    parts = rows.view(count, -1, kernel.DEPTH).transpose(0, 1)
    made = torch.empty(parts.shape, dtype=torch.float32).copy_(parts)
    return made, 4 * kernel.DEPTH, 4 * kernel.DEPTH * count


def _panels(weight: torch.Tensor) -> torch.Tensor:
    """View whole panels of (outputs, in_features) as (panels, in_features, lanes, 2)."""
    inside = weight.shape[1]
    return weight.reshape(-1, 2, LANES, inside).permute(0, 3, 2, 1)


@cache
def usable() -> bool:
    """Whether the kernel is there, compiles and is right: nobody has tried every CPU."""
    if kernel is None:
        return False
    try:
        error = _error()
    except Exception as failure:
        log.warning("panels are not used on this machine: %s: %s", type(failure).__name__, failure)
        return False
    if error > TOLERANCE:
        log.warning("panels are not used on this machine: products are off by %.1e", error)
    return error <= TOLERANCE


def _error() -> float:
    """Return by how much products in panels differ from those in float32, relatively."""
    generator = torch.Generator().manual_seed(5)
    plain = nn.Linear(150, 70, dtype=torch.bfloat16).requires_grad_(False)
    with torch.inference_mode():
        for parameter in plain.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        layer = PanelLinear(plain)
        rows = torch.randn(9, 150, generator=generator).bfloat16()
        wanted = nn.functional.linear(rows.float(), plain.weight.float(), plain.bias.float())
        return max(
            float((layer(rows[:n]).float() - wanted[:n]).norm() / wanted[:n].norm())
            for n in (1, 2, 9)
        )
