"""The sum of exponentials over a row of float32, in machine code: written in numba.

What it is for is `swarmd.engine.norms`'s business.
"""

from __future__ import annotations

import numba
import numpy as np

from swarmd.engine import simd
from swarmd.engine.kernel import kept
from swarmd.engine.simd import ROW

LOG2E = np.float32(1.4426950408889634)
_ONE = np.float32(1.0)


@kept
def sum_up(row: int, count: int) -> tuple[float, int, float, float]:
    """Return the greatest of `count` float32, where it first is, and with t = it * log2(e) as it is
    rounded: t, and the sum of 2**(x * log2(e) - t). `row` is an address."""
    values = numba.carray(simd.pointer(row), (count,), np.float32)
    whole = count // ROW
    most, block = np.float32(-np.inf), 0
    for n in range(whole):
        here = simd.largest(row + 4 * ROW * n, _ONE)
        if here > most:
            most, block = here, n
    at = block * ROW
    while at < whole * ROW - 1 and values[at] != most:
        at += 1
    for n in range(whole * ROW, count):
        if values[n] > most:
            most, at = values[n], n
    top = most * LOG2E
    out = np.empty(ROW, np.float32)
    total = 0.0
    for n in range(whole):
        total += simd.weigh_floats(row + 4 * ROW * n, out.ctypes.data, LOG2E, top)
    for n in range(whole * ROW, count):
        total += 2.0 ** (np.float64(values[n]) * LOG2E - top)
    return float(most), at, float(top), total
