"""Hidden states to bytes and back: raw little-endian elements, no copy more than needed.

What the bytes may look like is checked at the border by `swarmd.wire.frames`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from swarmd.core.frames import DType, Payload

TORCH_DTYPES = {
    DType.FLOAT32: torch.float32,
    DType.BFLOAT16: torch.bfloat16,
    DType.FLOAT16: torch.float16,
}
_WIRE_DTYPES = {torch_dtype: dtype for dtype, torch_dtype in TORCH_DTYPES.items()}


def to_payload(hidden: torch.Tensor) -> Payload:
    """Copy a tensor, such as hidden states (n, hidden_size), into a payload of its own dtype."""
    flat = hidden.detach().cpu().contiguous()
    # Bytes of its own: a view would keep the whole microbatch alive in the replay log.
    data = ctypes.string_at(flat.data_ptr(), flat.nbytes)
    return Payload(_WIRE_DTYPES[hidden.dtype], tuple(hidden.shape), data)


def gather(payloads: Sequence[Payload], dtype: torch.dtype) -> torch.Tensor:
    """Copy payloads (n_i, hidden_size) into one row block (sum of n_i, hidden_size) of `dtype`."""
    first = payloads[0]
    if all(payload.dtype is first.dtype for payload in payloads):
        data = bytearray().join(payload.data for payload in payloads)
        return _tensor(data, first.dtype, (-1, first.shape[-1])).to(dtype)
    return torch.cat([to_tensor(payload, dtype) for payload in payloads])


def to_tensor(payload: Payload, dtype: torch.dtype) -> torch.Tensor:
    """Copy a payload into a tensor of its shape and of `dtype`."""
    return _tensor(bytearray(payload.data), payload.dtype, payload.shape).to(dtype)


def _tensor(data: bytearray, dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor in these bytes, which may be written to, as any tensor may be."""
    return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).view(shape)
