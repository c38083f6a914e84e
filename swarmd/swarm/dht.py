"""The directory as a DHT: the parent's side, which keeps a directory process running and fed.

What runs in that process is `swarm.dht_child`; this side never imports hivemind, trusts nothing
that the process says, and keeps everything that a new process must be told.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from swarmd.core.clock import Clock, SystemClock
from swarmd.core.errors import DirectoryError, ProtocolError
from swarmd.core.peers import Announcement, NodeState
from swarmd.swarm import dht_process
from swarmd.swarm.dht_process import DirectoryProcess, ProcessEndedError
from swarmd.swarm.directory import DirectoryStats
from swarmd.swarm.identity import Identity, dht_key_file
from swarmd.swarm.records import decode, records_of, sign
from swarmd.v1 import directory_pb2 as pb

START_TIMEOUT_S = 30.0
TOMBSTONE_S = 30.0
STABLE_S = 10.0
RETRY_S = 0.05
MAX_NEIGHBOURS = 64
MAX_PEERS = 64
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DhtConfig:
    """Where the directory process listens, and through whom it joins."""

    state_dir: Path
    host: str = "127.0.0.1"
    """Address to listen on; "0.0.0.0" is all of IPv4."""
    port: int = 0
    """0 picks one, which is kept as long as this directory lives."""
    announce_host: str = ""
    """Address that others are told, if it is not the one listened on."""
    peers: tuple[str, ...] = ()
    """libp2p multiaddresses to join through; with none this node is the first of its swarm."""


def backoff_s(failures: int) -> float:
    """Return the pause before the next start after so many quick deaths in a row."""
    return float(min(10.0, 0.1 * 2 ** min(failures, 10)))


class DhtDirectory:
    """A `Directory` on hivemind's DHT. Open it with `start`, end it with `close`."""

    def __init__(self, config: DhtConfig, identity: Identity, clock: Clock) -> None:
        self._config = config
        self._identity = identity
        self._clock = clock
        self._port = config.port
        self._addresses: list[str] = []
        self._peers = dict.fromkeys(config.peers)
        self._neighbours: dict[str, None] = {}
        self._published: dict[str, Announcement] = {}
        self._child: DirectoryProcess | None = None
        self._found: pb.DirectoryFound | None = None
        """The last answer to a survey."""
        self._refused = 0
        """Records that this process has refused, as far as it has said."""
        self._ready = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self.stats = DirectoryStats()

    @classmethod
    async def start(
        cls, config: DhtConfig, identity: Identity, clock: Clock | None = None
    ) -> DhtDirectory:
        """Return a running directory; raises DirectoryError if it cannot listen or start.

        That none of `config.peers` answers is no error: they are tried again in the background.
        """
        self = cls(config, identity, clock or SystemClock())
        child = await self._launch()
        self._supervisor = asyncio.create_task(self._supervise(child), name="directory")
        return self

    async def publish(self, announcement: Announcement) -> None:
        """See `Directory`. Signs; raises ConfigError if it is not this node's or not valid."""
        signed = sign(announcement, self._identity)
        self._published[signed.peer_id] = signed
        taken = await self._store_if_up(signed)
        self.stats.sent += taken is True
        self.stats.refused += taken is False
        self.stats.failed += taken is None

    async def withdraw(self, peer_id: str) -> None:
        """See `Directory`; returns when the tombstone is stored, or cannot be."""
        last = self._published.get(peer_id)
        if last is None or last.state is NodeState.GONE:
            return
        now = self._clock.wall()
        # Only a strictly later record replaces another one.
        issued_at = max(now, last.issued_at + 1e-3)
        expires_at = max(now + TOMBSTONE_S, last.expires_at + 1e-3)
        gone = replace(last, state=NodeState.GONE, issued_at=issued_at, expires_at=expires_at)
        await self.publish(gone)

    async def announcements(self, wait_s: float = 0.0) -> list[Announcement]:
        """See `Directory`."""
        known = self._found if wait_s else None
        order = pb.DirectorySurvey(wait_s=wait_s, known=known.version if known else b"")
        found = (await self._ask(pb.DirectoryCommand(survey=order), wait_s)).found
        self._count_refused(found.refused)
        if known is None or found.version != known.version:
            self._found = known = found
        latest: dict[str, Announcement] = {}
        for announcement in [*self._valid(known), *self._published.values()]:
            held = latest.get(announcement.peer_id)
            if held is None or held.issued_at < announcement.issued_at:
                latest[announcement.peer_id] = announcement
        return list(latest.values())

    async def join(self, addresses: Iterable[str]) -> None:
        """See `Directory`; addresses that mean nothing are passed over."""
        new = [address for address in addresses if address not in self._peers]
        if not new:
            return
        self._peers = dict.fromkeys([*self._peers, *new][-MAX_PEERS:])
        if self._child is not None:
            with contextlib.suppress(DirectoryError):  # a new process is given all of them
                await self._ask(pb.DirectoryCommand(join=pb.DirectoryJoin(peers=new)))

    def known(self) -> list[str]:
        """Whom a new process joins through: first who was there lately, as it takes only some."""
        return list(dict.fromkeys([*self._neighbours, *self._peers]))

    def addresses(self) -> list[str]:
        """See `Directory`: this node's own first, then those of connected peers."""
        return [*self._addresses, *self._neighbours]

    @property
    def restarts(self) -> int:
        """How often the directory process was started anew."""
        return self.stats.restarts

    @property
    def child_pid(self) -> int | None:
        """Process id of the directory process; None while there is none."""
        return self._child.process.pid if self._child else None

    async def close(self) -> None:
        """See `Directory`. Tombstones are `withdraw`'s."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._child is not None:
            await self._child.stop()
        self._supervisor = self._child = None

    async def _launch(self) -> DirectoryProcess:
        """Start a process, tell it what the last one knew, and return it; raises DirectoryError."""
        child = await DirectoryProcess.spawn(self._meet)
        try:
            command = pb.DirectoryCommand(
                start=pb.DirectoryStart(
                    host=self._config.host,
                    port=self._port,
                    announce_host=self._config.announce_host,
                    identity_path=str(dht_key_file(self._config.state_dir)),
                    peers=self.known(),
                    socket_dir=child.socket_dir.name,
                )
            )
            started = (await child.ask(command, START_TIMEOUT_S)).started
        except BaseException:
            # It may still be importing, and would not see for seconds that nobody wants it.
            child.process.kill()
            await child.stop()
            raise
        self._port, self._addresses = started.port, list(started.addresses)
        self._child = child
        for announcement in list(self._published.values()):
            await self._store_if_up(announcement)
        self._ready.set()
        return child

    async def _supervise(self, child: DirectoryProcess) -> None:
        """Replace the process whenever it ends; the pauses grow while new ones die at once."""
        failures = 0
        while True:
            began = self._clock.monotonic()
            await child.ended()
            log.warning("directory process ended; starting another one")
            self._ready.clear()
            try:
                await child.stop()
            except Exception:  # whatever is left of it, there must be another one
                log.exception("the directory process that ended is not cleared away")
            self._child = None
            stable = self._clock.monotonic() - began >= STABLE_S
            failures = 0 if stable else failures + 1
            child = await self._relaunch(failures)
            self.stats.restarts += 1

    async def _relaunch(self, failures: int) -> DirectoryProcess:
        for attempt in itertools.count(failures):
            await asyncio.sleep(backoff_s(attempt))
            try:
                return await self._launch()
            except Exception as error:  # its key's disk may be full or gone, or no memory left
                log.warning("directory process does not start: error=%s attempt=%d", error, attempt)
        raise AssertionError("unreachable")

    async def _store_if_up(self, announcement: Announcement) -> bool | None:
        """Store now if there is a process; a new one is told everything that is published.

        Returns whether some peer has taken it; None if it could not be asked.
        """
        if self._child is None:
            return None
        try:
            return await self._store(self._child, announcement)
        except DirectoryError as error:
            log.warning("announcement not stored yet: error=%s", error)
            return None

    async def _store(self, child: DirectoryProcess, announcement: Announcement) -> bool:
        if announcement.expires_at <= self._clock.wall():
            return False
        records = [
            pb.DirectoryRecord(key=r.key, subkey=r.subkey, value=r.value, expires_at=r.expires_at)
            for r in records_of(announcement)
        ]
        reply = await child.ask(pb.DirectoryCommand(store=pb.DirectoryStore(records=records)))
        # The first is its own place; the one in the list of models it shares with others.
        return any(reply.stored.stored[:1])

    def _count_refused(self, refused: int) -> None:
        """Take what a process says of itself since it began: less than before is another one's."""
        since = refused - self._refused if refused >= self._refused else refused
        self.stats.records_refused += since
        self._refused = refused

    def _valid(self, found: pb.DirectoryFound) -> Iterator[Announcement]:
        """Yield what was found and is valid; this process checks it once more."""
        for record in found.records:
            try:
                yield decode(record.value, self._clock.wall())
            except ProtocolError as error:
                log.debug("record passed over: error=%s", error)

    async def _ask(self, command: pb.DirectoryCommand, wait_s: float = 0.0) -> pb.DirectoryReply:
        """Ask the process, or the next one if it ends meanwhile; raises DirectoryError.

        `wait_s` is how long the process may take its time.
        """
        patience = dht_process.REPLY_TIMEOUT_S + wait_s
        try:
            async with asyncio.timeout(2 * patience):
                while True:
                    await self._ready.wait()
                    child = self._child
                    if child is not None and not child.has_ended:
                        with contextlib.suppress(ProcessEndedError):
                            return await child.ask(command, patience)
                    await asyncio.sleep(RETRY_S)
        except TimeoutError:
            raise DirectoryError("the directory process is down and being started again") from None

    def _meet(self, addresses: Iterable[str]) -> None:
        """Remember who is there now, for the next process; an empty list would help nobody."""
        met = dict.fromkeys(itertools.islice(addresses, MAX_NEIGHBOURS))
        self._neighbours = met or self._neighbours
