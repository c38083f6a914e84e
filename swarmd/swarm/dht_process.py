"""One directory process as its parent holds it: executed, asked, and stopped.

What it is asked, and that it is replaced when it ends, is `swarm.dht`'s business; what runs in it,
`swarm.dht_child`'s.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable

from google.protobuf.message import DecodeError

from swarmd.core.errors import DirectoryError
from swarmd.swarm.pipe import read_message, write_message
from swarmd.v1 import directory_pb2 as pb

REPLY_TIMEOUT_S = 10.0
"""More than the directory process allows itself: one that is silent for longer hangs."""
STOP_TIMEOUT_S = 3.0
# The process reads what strangers send: it gets no tokens or passwords from our environment.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")

log = logging.getLogger(__name__)


class ProcessEndedError(DirectoryError):
    """The process ended before it answered: the next one can be asked."""


class DirectoryProcess:
    """One directory process and the questions that it has not answered yet."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        met: Callable[[Iterable[str]], None],
    ) -> None:
        self.process = process
        self.socket_dir = tempfile.TemporaryDirectory(prefix="swarmd-", ignore_cleanup_errors=True)
        self._met = met
        self._writer = writer
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[pb.DirectoryReply]] = {}
        self._reading = asyncio.create_task(self._read(reader), name="directory replies")

    @classmethod
    async def spawn(cls, met: Callable[[Iterable[str]], None]) -> DirectoryProcess:
        """Execute a fresh interpreter: nothing of this process, its threads or its weights.

        `met` is told the directory addresses of connected peers whenever they change.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            process = _execute(theirs.fileno())
        ours.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return cls(process, reader, writer, met)

    async def ask(
        self, command: pb.DirectoryCommand, timeout: float | None = None
    ) -> pb.DirectoryReply:
        """Return the reply; raises DirectoryError, and kills a process that stays silent."""
        if self.has_ended:
            raise ProcessEndedError("the directory process has ended")
        timeout = timeout or REPLY_TIMEOUT_S
        command.id = next(self._ids)
        waiting = self._waiting[command.id] = asyncio.get_running_loop().create_future()
        try:
            write_message(self._writer, command.SerializeToString())
            async with asyncio.timeout(timeout):
                reply: pb.DirectoryReply = await waiting
        except TimeoutError:
            self.process.kill()
            raise DirectoryError(f"the directory process was silent for {timeout:g} s") from None
        finally:
            del self._waiting[command.id]
        if reply.HasField("failed"):
            raise DirectoryError(f"the directory process failed: {reply.failed.message}")
        return reply

    @property
    def has_ended(self) -> bool:
        return self._reading.done()

    async def ended(self) -> None:
        """Return when the process has closed its end of the socket."""
        await asyncio.wait([self._reading])

    async def stop(self) -> None:
        """Close the socket, which ends the process and its p2pd; kill it if it does not listen."""
        self._reading.cancel()
        self._writer.close()
        await asyncio.gather(self._reading, return_exceptions=True)
        try:
            await asyncio.to_thread(self.process.wait, STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
        self.socket_dir.cleanup()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while message := await read_message(reader):
                reply = pb.DirectoryReply.FromString(message)
                if reply.HasField("neighbours"):
                    self._met(reply.neighbours.addresses)
                waiting = self._waiting.get(reply.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
        except (ValueError, DecodeError) as error:
            log.warning("directory process sent garbage: error=%s", error)
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ProcessEndedError("the directory process has ended"))


def _execute(descriptor: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "swarmd.swarm.dht_child", str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # Away from the terminal's group: Ctrl-C must not end it before the node's tombstone.
        start_new_session=True,
        env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        | {"HIVEMIND_LOGLEVEL": "ERROR", "GOLOG_LOG_LEVEL": "error"},
    )
