"""A large file of which only some byte ranges are here, and a journal that survives a kill.

Which ranges are wanted and where they come from is `hub`'s business.

Three files: `NAME` is as long as the original, with holes; `NAME.ranges` lists the ranges that are
complete, one `start end` per line; `NAME.lock` is held by the process that writes. A range enters
the journal only after its bytes are on the disk, so the journal never promises too much.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from swarmd.engine.byte_ranges import Range, merge, subtract
from swarmd.engine.disk import write_atomically

log = logging.getLogger(__name__)

POLL_S = 0.2
"""Between two looks at a lock that is held: `flock` that blocks could not be given up."""

_LINE = re.compile(rb"(\d{1,19}) (\d{1,19})")


class PartialFile:
    """The file at `path`, `size` bytes when complete. Errors of all methods: OSError."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self._journal = path.with_name(path.name + ".ranges")
        self._lock = path.with_name(path.name + ".lock")

    def held(self) -> list[Range]:
        """The ranges that are complete, sorted and disjoint. Read afresh: others write as well."""
        try:
            if self.path.stat().st_size != self.size:
                return []
            lines = self._journal.read_bytes().split(b"\n")  # a torn last one promises less
        except FileNotFoundError:
            return []
        matches = [match for line in lines if (match := _LINE.fullmatch(line))]
        ranges = [(int(match[1]), int(match[2])) for match in matches]
        return merge((start, end) for start, end in ranges if start < end <= self.size)

    def missing(self, ranges: Sequence[Range]) -> list[Range]:
        """What of `ranges` is not here yet."""
        return subtract(ranges, self.held())

    def read(self, start: int, end: int) -> bytes:
        """Bytes `[start, end)`, which must be held."""
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def forget(self) -> None:
        """Drop what is here, because it proved wrong."""
        self._journal.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    @contextmanager
    def writing(self, waiting: Callable[[], object] = lambda: None) -> Iterator[PartialFileWriter]:
        """Alone among all processes: fill holes.

        Waits for another process that does; meanwhile `waiting` is called, and may raise.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self._lock, waiting):
            held = self.held()
            # Written anew, since a line torn by a crash would corrupt the next one appended.
            write_atomically(self._journal, b"".join(_line(start, end) for start, end in held))
            with (
                open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", 0) as data,
                self._journal.open("ab", 0) as journal,
            ):
                os.ftruncate(data.fileno(), self.size)
                yield PartialFileWriter(data.fileno(), journal.fileno())


class PartialFileWriter:
    """Write bytes anywhere, then record them as complete; safe to use from several threads."""

    def __init__(self, data: int, journal: int) -> None:
        self._data = data
        self._journal = journal
        self._guard = threading.Lock()

    def write(self, offset: int, content: bytes) -> None:
        """Put `content` at `offset`."""
        view = memoryview(content)
        while view:
            written = os.pwrite(self._data, view, offset)
            offset, view = offset + written, view[written:]

    def record(self, start: int, end: int) -> None:
        """Promise that `[start, end)` is complete, after a power cut as well."""
        if start == end:
            return
        os.fsync(self._data)
        with self._guard:
            os.write(self._journal, _line(start, end))


def _line(start: int, end: int) -> bytes:
    return b"%d %d\n" % (start, end)


@contextmanager
def _locked(path: Path, waiting: Callable[[], object]) -> Iterator[None]:
    with path.open("ab") as file:
        if not _try_lock(file):
            log.info("waiting for another process that downloads file=%s", path.stem)
            while not _try_lock(file):
                waiting()
                time.sleep(POLL_S)
        yield


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
