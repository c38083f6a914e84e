"""Which errors say that the machine or the device has no memory left, or that the device is lost.

What follows from it is the executor's and `swarmd.pipeline.hop`'s business.
"""

from __future__ import annotations

import torch

_ALLOCATOR = (
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "CUBLAS_STATUS_ALLOC",
    "CUDNN_STATUS_ALLOC",
    "CUDA error: out of memory",
)
"""torch's CPU allocator, the C++ library and those of the device raise a plain RuntimeError: only
its text tells."""

_LOST = ("CUDA error:", "CUBLAS_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_EXECUTION_FAILED")
"""A failed kernel is reported so, and whatever is asked of the device in this process after it."""


def is_exhaustion(error: BaseException) -> bool:
    """Whether memory ran out: the same work may succeed once others have given memory back."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATOR)


def is_loss(error: BaseException) -> bool:
    """Whether the device computes nothing more for this process, whoever asks."""
    if not isinstance(error, RuntimeError) or is_exhaustion(error):
        return False
    return any(text in str(error) for text in _LOST)
