"""One safetensors file on disk: its header and its tensors, memory-mapped.

Which file holds which tensor is `checkpoint`'s business; what a header may say, the parser's.
"""

from __future__ import annotations

import errno
import mmap
import warnings
from pathlib import Path

import torch

from swarmd.core.errors import WeightsError
from swarmd.engine.safetensors_header import (
    PREFIX_BYTES,
    Header,
    TensorEntry,
    header_bytes,
    parse_header,
)


def read_header(path: Path, where: str) -> Header:
    """Read and check the header of a complete file; `where` names it in errors."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = header_bytes(file.read(PREFIX_BYTES), size, where)
            return parse_header(file.read(length), size, where)
    except OSError as error:
        raise WeightsError(f"{where}: cannot be read: {error.strerror}") from error


def map_file(path: Path, where: str) -> mmap.mmap:
    """Map the whole file; its pages are shared with the page cache.

    A private, writable mapping: a stray write stays in this process and never reaches the file.
    Linux refuses those beyond the size of memory, though only this span's part of a file will ever
    be touched, so a larger file is mapped read-only.
    """
    try:
        with path.open("rb") as file:
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{where}: cannot be mapped: {error}") from error


def mapped_tensor(mapping: mmap.mmap, entry: TensorEntry, where: str) -> torch.Tensor:
    """A tensor over the mapped bytes, without a copy; it keeps the mapping alive."""
    meta = entry.meta
    if entry.end > len(mapping):
        raise WeightsError(f"{where}: {len(mapping)} bytes left, {entry.end} expected: truncated")
    if meta.nbytes == 0:
        return torch.empty(meta.shape, dtype=meta.dtype)
    buffer: mmap.mmap | bytearray = mapping
    offset = entry.start
    if offset % meta.dtype.itemsize:
        # Headers are padded to 8 bytes by every known writer; a foreign one may not be, and torch
        # does not promise to compute on misaligned storage.
        buffer, offset = bytearray(mapping[entry.start : entry.end]), 0
    count = meta.nbytes // meta.dtype.itemsize
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        flat = torch.frombuffer(buffer, dtype=meta.dtype, count=count, offset=offset)
    return flat.reshape(meta.shape)
