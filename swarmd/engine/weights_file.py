"""One safetensors file on disk: its header and its tensors.

Which file holds which tensor is `checkpoint`'s business; what a header may say, the parser's.
"""

from __future__ import annotations

import os
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


def read_tensor(path: Path, entry: TensorEntry, where: str) -> torch.Tensor:
    """Read one tensor into memory of its own, which is the only copy in this process.

    Not a mapping: a file that is cut short while it is served would kill the process (SIGBUS), a
    mapping's pages stay beside a cast copy for as long as it lives and are aligned as the file
    happens to be, and each costs a file descriptor.
    """
    content = torch.empty(entry.meta.nbytes, dtype=torch.uint8)
    try:
        fd = os.open(path, os.O_RDONLY)
        try:
            done = _fill(fd, content.numpy().data, entry.start)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
    except OSError as error:
        raise WeightsError(f"{where}: cannot be read: {error.strerror}") from error
    if done < entry.meta.nbytes:
        raise WeightsError(f"{where}: truncated: {size} bytes, at least {entry.end} expected")
    return content.view(entry.meta.dtype).reshape(entry.meta.shape)


def _fill(fd: int, target: memoryview, offset: int) -> int:
    """Read into `target` until it is full or the file ends; the number of bytes read."""
    done = 0
    while done < len(target):
        count = os.preadv(fd, [target[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done
