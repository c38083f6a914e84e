"""Which errors say that the machine or the device has no memory left, whoever raised them.

What follows from it is the executor's and `swarmd.pipeline.hop`'s business.
"""

from __future__ import annotations

import torch

_ALLOCATOR = ("can't allocate memory", "not enough memory", "std::bad_alloc", "CUBLAS_STATUS_ALLOC")
"""torch's CPU allocator, the C++ library and cuBLAS raise a plain RuntimeError: only its text
tells."""


def is_exhaustion(error: BaseException) -> bool:
    """Whether memory ran out: the same work may succeed once others have given memory back."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ALLOCATOR)
