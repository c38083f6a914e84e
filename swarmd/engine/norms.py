"""Of rows of logits: the likeliest token, and the norm from which log-probabilities count.

On a CPU it is done in machine code: whatever runs once per token finds nothing of itself in the
caches, and five calls into numpy take several times as long as the arithmetic.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import torch

try:
    from swarmd.engine import norm_kernel as kernel
except ImportError:  # a platform that numba does not know
    kernel = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

Norm = tuple[float, int, float]
"""log(sum(exp(logits))), the likeliest token (of equals the first), and its logit. The first is not
finite if one of the logits is not, except minus infinity."""
TOLERANCE = 1e-5


def norms(logits: torch.Tensor) -> list[Norm]:
    """Return the norm of each row of logits (n, vocab_size) float32."""
    if logits.device.type == "cpu":
        logits = logits.contiguous()
        rows = range(logits.shape[0])  # len() of a tensor takes several times as long
        return [_of_address(logits, n) if kernel else _plain(logits[n]) for n in rows]
    found, likeliest = torch.logsumexp(logits, dim=-1), logits.argmax(dim=-1)
    most = logits.gather(-1, likeliest[:, None])[:, 0]
    # One copy for all: every one of them waits for the device.
    found_rows = torch.stack([found.double(), likeliest.double(), most.double()], 1).tolist()
    return [(norm, int(likely), logit) for norm, likely, logit in found_rows]


def check_kernel() -> None:
    """Compile the kernel before the first token waits for that; give it up if it is wrong."""
    global kernel
    if kernel is None:
        return
    row = torch.linspace(-9.0, 9.0, 1000)
    try:
        problem = f"{norms(row[None])[0]} instead of {_plain(row)}"
        good = math.dist(norms(row[None])[0], _plain(row)) <= TOLERANCE
    except Exception as failure:
        good, problem = False, f"{type(failure).__name__}: {failure}"
    if not good:
        log.warning("the kernel for norms is not used on this machine: %s", problem)
        kernel = None  # type: ignore[assignment]


def _of_address(logits: torch.Tensor, row: int) -> Norm:
    count = logits.shape[1]
    most, at, top, total = kernel.sum_up(logits.data_ptr() + 4 * count * row, count)
    if not 0 < total < math.inf:  # a row that is not finite, or beyond what the kernel is for
        return _plain(logits[row])
    rounded = most * float(kernel.LOG2E) - top
    return most + max(0.0, math.log2(total) - rounded) * math.log(2.0), at, most


def _plain(row: torch.Tensor) -> Norm:
    values = row.numpy()
    likeliest = int(values.argmax())
    most = float(values[likeliest])
    if not math.isfinite(most):
        return most, likeliest, most
    return most + math.log(float(np.exp(values - most).sum())), likeliest, most
