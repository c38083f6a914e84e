"""Small promises about files: replaced as a whole, and room enough before a download begins.

What is kept in them is the callers' business.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swarmd.core.errors import HubError

SPARE_BYTES = 64 << 20
"""Left free on the disk, for the journal and for everybody else."""


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file's content so that a reader, or a crash, sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(fd, 0o644)  # a cache may be shared; mkstemp lets nobody else read
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn OSError into HubError; `path` is named where the error names no file."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        left = f" ({_free(path)} bytes are free; what has arrived is kept)" if full else ""
        raise HubError(
            f"{error.filename or path}: {error.strerror or error}{left}: make room or set HF_HOME "
            "to a directory that can be written"
        ) from error


def require_space(directory: Path, nbytes: int) -> None:
    """Refuse a download for which the disk has no room. Errors: HubError."""
    free = _free(directory)
    if free < nbytes + SPARE_BYTES:
        raise HubError(
            f"{directory}: {nbytes} bytes are to be downloaded, the disk has {free} free: "
            "make room, or set HF_HOME to a larger disk"
        )


def _free(place: Path) -> int:
    """Bytes that are free where a path lies, or would lie."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
