"""Products of float32 rows with bfloat16 weights that lie in panels, for CPUs: written in numba.

A panel holds `COLUMNS` outputs of a layer, input by input, so that a vector of neighbouring outputs
is one load (the packed micro-panels of Goto and van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", 2008). An output is added up input by input in float32, whoever shares the batch,
the panel or the thread: no bit depends on company.
"""

from __future__ import annotations

import numba
import numpy as np

from swarmd.engine import simd
from swarmd.engine.kernel import compiled, kept
from swarmd.engine.simd import LANES

COLUMNS = 2 * LANES
"""Outputs in a panel; a pair of 32 bits holds numbers n and n + `LANES`."""

DEPTH = 128
"""Inputs of a panel that meet all rows before the next ones do: 16 KiB as floats, which stay in the
L1 cache."""

BLOCK = 6
"""Rows that meet a column of vectors at once: with 16 lanes each they fill the 16 registers of
AVX2, but for what is multiplied."""

TOGETHER = 126
"""Rows that go through all panels before the next do: a depth of theirs is 63 KiB, which stay in
the L2 cache."""


@kept
def multiply(
    rows: int,
    count: int,
    row_bytes: int,
    depth_bytes: int,
    panels: int,
    bias: np.ndarray,
    out: int,
    inside: int,
    outside: int,
    first: int,
    last: int,
) -> None:
    """Multiply `rows`, float32 (count, inside), with the panels `[first, last)`.

    From row to row it is `row_bytes`, from one `DEPTH` of inputs to the next `depth_bytes`.
    `panels` are bfloat16 pairs (panels, inside, LANES), `bias` is one float32 for each output of
    all panels or empty, `out` bfloat16 (count, outside). Rows, panels and out are addresses.
    """
    # An array lives until its last use by name, whatever points into it.
    wide = np.empty((DEPTH, COLUMNS), np.float32)
    sums = np.empty((min(count, TOGETHER), COLUMNS), np.float32)
    for begin in range(0, count, TOGETHER):
        some = min(TOGETHER, count - begin)
        for panel in range(first, last):
            start = panel * COLUMNS
            if bias.size > 0:
                sums[:] = bias[start : start + COLUMNS]
            else:
                sums[:] = np.float32(0)
            for depth in range(0, inside, DEPTH):
                weights = panels + (panel * inside + depth) * 4 * LANES
                part = rows + begin * row_bytes + depth // DEPTH * depth_bytes
                size = min(DEPTH, inside - depth)
                _add(sums, part, some, row_bytes, weights, size, wide)
            for row in range(some):
                source = sums.ctypes.data + row * COLUMNS * 4
                target = out + ((begin + row) * outside + start) * 2
                _write(source, target, min(COLUMNS, outside - start))


@compiled
def _add(
    sums: np.ndarray,
    rows: int,
    count: int,
    row_bytes: int,
    weights: int,
    depth: int,
    wide: np.ndarray,
) -> None:
    """Add the products of all rows with `depth` inputs of a panel; `wide` has room for these."""
    step = 4 * COLUMNS
    row = 0
    if count >= BLOCK:
        simd.widen_panel(weights, wide.ctypes.data, depth)
    while row + BLOCK <= count:
        c, a, b = sums.ctypes.data + row * step, rows + row * row_bytes, wide.ctypes.data
        simd.sums_of_6(c, step, a, row_bytes, b, step, depth)
        simd.sums_of_6(c + step // 2, step, a, row_bytes, b + step // 2, step, depth)
        row += BLOCK
    while row < count:
        c, a = sums.ctypes.data + row * step, rows + row * row_bytes
        if row + 2 <= count:
            simd.panel_sums_of_2(c, a, row_bytes, weights, depth)
            row += 2
        else:
            simd.panel_sums_of_1(c, a, row_bytes, weights, depth)
            row += 1


@compiled
def _write(source: int, target: int, width: int) -> None:
    """Round `width` sums to bfloat16, half to even."""
    if width == COLUMNS:
        simd.round_panel(source, target)
        return
    words = numba.carray(simd.pointer(source), (width,), np.uint32)
    halves = numba.carray(simd.pointer(target), (width,), np.uint16)
    for j in range(width):
        odd = (words[j] >> np.uint32(16)) & np.uint32(1)
        halves[j] = np.uint16((words[j] + np.uint32(0x7FFF) + odd) >> np.uint32(16))
