"""Fill the holes of a partial file from the hub, over several connections.

HTTP is `hub_client`'s business, keeping the bytes `partial_file`'s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from swarmd.core.errors import HubError
from swarmd.engine.byte_ranges import Range, cut, merge, subtract
from swarmd.engine.hub_client import HubClient, RemoteFile
from swarmd.engine.partial_file import POLL_S, PartialFile, PartialFileWriter
from swarmd.engine.retry import TransientError


@dataclass(frozen=True, slots=True)
class FetchPolicy:
    """What a request, a connection and a sync to disk are worth."""

    gap_bytes: int = 16 << 10
    """Unwanted bytes that are cheaper to take along than one request more (some norms lie between
    a block's matrices; what lies between blocks is far larger)."""
    piece_bytes: int = 64 << 20
    """The most that one request asks for."""
    connections: int = 4
    record_bytes: int = 16 << 20
    """Lost at most, per connection, when the process is killed."""


DEFAULT_FETCH = FetchPolicy()


def plan(missing: Sequence[Range], held: Sequence[Range], policy: FetchPolicy) -> list[Range]:
    """The ranges to request: `missing` with small gaps closed, but nothing twice."""
    requests = subtract(merge(missing, policy.gap_bytes), held)
    return list(cut(requests, policy.piece_bytes))


def download(
    client: HubClient,
    file: RemoteFile,
    commit: str,
    wanted: Sequence[Range],
    target: PartialFile,
    policy: FetchPolicy,
    advance: Callable[[int], None],
) -> None:
    """Bring `wanted` into `target`; `advance` hears of every byte, from any thread.

    `advance(0)` is called while the hub is silent, and may raise. Whatever ends this early, what
    had arrived is recorded. Errors: HubError, OSError.
    """
    with target.writing(lambda: advance(0)) as writer:
        held = target.held()
        requests = plan(subtract(wanted, held), held, policy)
        stop = threading.Event()
        work = _Download(client, file, commit, writer, policy, advance, stop)
        with ThreadPoolExecutor(policy.connections, "download") as pool:
            pieces = {pool.submit(work.piece, start, end) for start, end in requests}
            try:
                _wait_for(pieces, lambda: advance(0))
            except BaseException:
                stop.set()
                _end(pieces, client)
                raise


def _wait_for(pieces: set[Future[None]], idle: Callable[[], object]) -> None:
    """Return when all are done, raise what one of them raised; meanwhile call `idle`."""
    while pieces:
        done, pieces = wait(pieces, POLL_S, FIRST_COMPLETED)
        for piece in done:
            piece.result()
        if not done:
            idle()


def _end(pieces: set[Future[None]], client: HubClient) -> None:
    """Wait until none runs. One that waits for a silent hub notices when it is hung up on."""
    for piece in pieces:
        piece.cancel()
    while pieces:
        client.hang_up()  # each time: one may just have connected anew
        pieces = wait(pieces, POLL_S).not_done


@dataclass(frozen=True)
class _Download:
    client: HubClient
    file: RemoteFile
    commit: str
    writer: PartialFileWriter
    policy: FetchPolicy
    advance: Callable[[int], None]
    stop: threading.Event

    def piece(self, start: int, end: int) -> None:
        """Bring `[start, end)`, going on after a broken connection where it broke."""
        position, failures = start, 0
        while position < end and not self.stop.is_set():
            reached, error = self._request(position, end)
            if error is not None:
                failures = 1 if reached > position else failures + 1
                self.client.pause(failures, error, self.stop.wait)
            position = reached

    def _request(self, start: int, end: int) -> tuple[int, TransientError | None]:
        """One request: write what it brings; how far that reaches, and what ended it early."""
        position = recorded = start
        try:
            with self.client.open_range(self.file, self.commit, start, end) as chunks:
                for chunk in chunks:
                    if self.stop.is_set():
                        return position, None
                    self.writer.write(position, chunk)
                    position += len(chunk)
                    self.advance(len(chunk))
                    if position - recorded >= self.policy.record_bytes:
                        self.writer.record(recorded, position)
                        recorded = position
        except TransientError as error:
            return position, error
        finally:
            self.writer.record(recorded, position)
        return position, None if position == end else TransientError(
            self._short(start, position, end)
        )

    def _short(self, start: int, position: int, end: int) -> HubError:
        return HubError(
            f"{self.client.repo}: {self.file.name}: {position - start} of {end - start} bytes came"
        )
