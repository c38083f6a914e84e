"""Hidden states to bytes and back: raw little-endian elements, no copy more than needed.

What the bytes may look like is checked at the border by `swarmd.wire.frames`.
"""

from __future__ import annotations

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
    flat = hidden.detach().contiguous().cpu().view(torch.uint8)
    # Bytes of its own: a view would keep the whole microbatch alive in the replay log.
    return Payload(_WIRE_DTYPES[hidden.dtype], tuple(hidden.shape), flat.numpy().tobytes())


def gather(payloads: Sequence[Payload], dtype: torch.dtype) -> torch.Tensor:
    """Copy payloads (n_i, hidden_size) into one row block (sum of n_i, hidden_size) of `dtype`."""
    width = payloads[0].shape[-1]
    total = sum(payload.shape[0] for payload in payloads)
    rows = torch.empty((total, width), dtype=dtype)
    start = 0
    for payload in payloads:
        end = start + payload.shape[0]
        _fill(rows[start:end], payload)
        start = end
    return rows


def to_tensor(payload: Payload, dtype: torch.dtype) -> torch.Tensor:
    """Copy a payload into a tensor of its shape and of `dtype`."""
    tensor = torch.empty(payload.shape, dtype=dtype)
    _fill(tensor, payload)
    return tensor


def _fill(rows: torch.Tensor, payload: Payload) -> None:
    sent = TORCH_DTYPES[payload.dtype]
    if sent == rows.dtype:
        view = memoryview(rows.view(torch.uint8).numpy())  # type: ignore[arg-type]
        view.cast("B")[:] = payload.data
        return
    same = torch.empty(rows.shape, dtype=sent)
    _fill(same, payload)
    rows.copy_(same)
