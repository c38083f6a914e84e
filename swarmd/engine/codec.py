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
    flat = hidden.cpu().contiguous()
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


class OneRow:
    """Input for one position, in tensors that are made once: to make one takes as long as a dozen
    other things that are done per token. Each call overwrites what the one before has returned.
    And output, as a payload, out of memory that is mostly where the last one was."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._id = torch.zeros(1, dtype=torch.long)
        self._id_place = ctypes.c_int64.from_address(self._id.data_ptr())
        self._hidden = torch.zeros(1, 0, dtype=dtype)
        self._address = self._nbytes = 0
        self._output = (ctypes.c_char * 0)()
        self._output_at = (0, 0)

    def token(self, token_id: int) -> torch.Tensor:
        """Return (1,) int64."""
        self._id_place.value = token_id
        return self._id

    def hidden(self, payload: Payload) -> torch.Tensor:
        """Return the hidden states (1, hidden_size) of a payload in the dtype."""
        if TORCH_DTYPES[payload.dtype] is not self._dtype:
            return gather([payload], self._dtype)
        if len(payload.data) != self._nbytes:
            self._hidden = torch.zeros(payload.shape, dtype=self._dtype)
            self._address, self._nbytes = self._hidden.data_ptr(), self._hidden.nbytes
        ctypes.memmove(self._address, bytes(payload.data), self._nbytes)
        return self._hidden

    def payload(self, output: torch.Tensor) -> Payload:
        """Return a copy of hidden states (1, hidden_size), as `to_payload` does."""
        output = output.contiguous()
        address, nbytes = output.data_ptr(), output.nbytes
        if self._output_at != (address, nbytes):
            self._output = (ctypes.c_char * nbytes).from_address(address)
            self._output_at = address, nbytes
        return Payload(_WIRE_DTYPES[output.dtype], tuple(output.shape), self._output.raw)


def to_tensor(payload: Payload, dtype: torch.dtype) -> torch.Tensor:
    """Copy a payload into a tensor of its shape and of `dtype`."""
    return _tensor(bytearray(payload.data), payload.dtype, payload.shape).to(dtype)


def _tensor(data: bytearray, dtype: DType, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor in these bytes, which may be written to, as any tensor may be."""
    return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).view(shape)
