"""The directory process: one peer of hivemind's DHT, which keeps only records that are signed.

Run by `swarm.dht` as `python -m swarmd.swarm.dht_child FD`, with one end of a socketpair. The only
file that imports hivemind. It ends when its parent's end of the socket closes or when p2pd dies:
starting again, with the same port and key, is the parent's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import itertools
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]

from swarmd.core.errors import ProtocolError
from swarmd.swarm.bare_import import import_bare
from swarmd.swarm.dht_commands import run
from swarmd.swarm.ports import check_port, free_port, is_listening
from swarmd.swarm.records import MAX_RECORD_BYTES, StaleError, belongs, decode
from swarmd.v1 import directory_pb2 as pb

import_bare()

import hivemind.dht.node as hivemind_node  # noqa: E402
from hivemind.dht.crypto import DHTRecord  # noqa: E402
from hivemind.dht.protocol import DHTProtocol  # noqa: E402
from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue  # noqa: E402
from hivemind.dht.validation import RecordValidatorBase  # noqa: E402
from hivemind.p2p import P2P, P2PContext, PeerID  # noqa: E402
from hivemind.proto import dht_pb2  # noqa: E402
from hivemind.utils.multiaddr import Multiaddr  # noqa: E402
from hivemind.utils.serializer import MSGPackSerializer  # noqa: E402
from hivemind.utils.timed_storage import TimedStorage, ValueWithExpiration  # noqa: E402

MAX_KEYS = 1024
MAX_SUBKEYS = 1024
MAX_VALUE_BYTES = 2 << 20
MAX_CALL_KEYS = 256
MAX_NEAREST = 20
MAX_PEERS = 64
MAX_ADDRESSES = 8
MAX_NEIGHBOURS = 32
RPC_TIMEOUT_S = 3.0
LOOKUP_TIMEOUT_S = 4.0
FIRST_JOIN_S = 3.0
JOIN_TIMEOUT_S = 8.0
GLANCE_TIMEOUT_S = 1.0
TICK_S = 1.0
LONELY_RETRY_S = (0.25, 4.0)
MISSING_RETRY_S = 15.0
_DICTIONARY_CODE = 0x50


# What strangers send ------------------------------------------------------------------------------


def bounded_loads(data: bytes) -> Any:
    """Decode what hivemind packs, and nothing that could exhaust stack or memory.

    hivemind's own decoder calls itself for every nested extension, before any validator has seen
    the record. Here a dictionary may hold plain entries, and nothing else nests.
    """
    if len(data) > MAX_VALUE_BYTES:
        raise ValueError(f"{len(data)} bytes, at most {MAX_VALUE_BYTES} are read")
    return msgpack.unpackb(data, raw=False, ext_hook=_read_dictionary)


def _read_dictionary(code: int, data: bytes) -> Any:
    if code != _DICTIONARY_CODE:
        raise ValueError(f"msgpack extension {code} is not allowed")
    _, _, entries = msgpack.unpackb(data, raw=False, ext_hook=_refuse_extension)
    dictionary = DictionaryDHTValue()
    with dictionary.freeze():
        for subkey, value, expiration in entries:
            if not isinstance(subkey, bytes) or not isinstance(value, bytes):
                raise ValueError("subkeys and values must be bytes")
            if not isinstance(expiration, float) or not math.isfinite(expiration):
                raise ValueError("an expiration must be a finite number")
            dictionary.store(subkey, value, expiration)
    return dictionary


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"msgpack extension {code} within a dictionary")


def _plain_bytes(packed: bytes) -> bytes:
    value = bounded_loads(packed)
    if not isinstance(value, bytes):
        raise ValueError(f"expected bytes, not {type(value).__name__}")
    return value


class AnnouncementValidator(RecordValidatorBase):  # type: ignore[misc]
    """Keeps a record only if it is a signed announcement, in its own place, for its own time."""

    def __init__(self) -> None:
        self.refused = 0
        """Records that were not kept; one whose time has just run out is nothing to speak of."""

    def validate(self, record: DHTRecord) -> bool:
        try:
            kept = self._fits(record)
        except StaleError:
            return False
        except (ProtocolError, ValueError, msgpack.UnpackException):
            kept = False
        self.refused += not kept
        return kept

    def _fits(self, record: DHTRecord) -> bool:
        if len(record.value) > MAX_RECORD_BYTES + 8:
            return False
        announcement = decode(_plain_bytes(record.value), time.time())
        in_place = belongs(announcement, record.key, _plain_bytes(record.subkey))
        return in_place and bool(record.expiration_time == announcement.expires_at)


class BoundedStorage(DHTLocalStorage):  # type: ignore[misc]
    """hivemind's storage with a limit on the number of keys."""

    def __init__(self, max_keys: int) -> None:
        super().__init__()
        self.max_keys = max_keys

    def store_subkey(self, key: Any, subkey: Any, value: bytes, expiration_time: float) -> bool:
        if key not in self.data and len(self.data) >= self.max_keys:
            return False
        return bool(super().store_subkey(key, subkey, value, expiration_time))


def _store_newer(self: Any, key: Any, value: bytes, expiration_time: float) -> bool:
    """`DictionaryDHTValue.store`, bounded, and without touching the entry when it is not newer.

    hivemind's own re-files an entry under the older expiration even while it keeps the newer value:
    a replayed record would delete its successor.
    """
    held = self.data.get(key)
    if held is None and len(self.data) >= MAX_SUBKEYS:
        return False
    if held is not None and held.expiration_time >= expiration_time:
        return False
    self.latest_expiration_time = max(self.latest_expiration_time, expiration_time)
    return bool(TimedStorage.store(self, key, value, expiration_time))


class SwarmdDirectory(DHTProtocol):  # type: ignore[misc]
    """hivemind's DHT protocol for untrusted peers.

    The class name is part of the name of its calls on the wire, so other hivemind DHTs stay apart.
    """

    @classmethod
    async def create(cls, *args: Any, **kwargs: Any) -> SwarmdDirectory:
        self: SwarmdDirectory = await super().create(*args, **kwargs)
        # Nobody asks others to cache (see `_join_dht`), so there is nothing to keep for them.
        self.storage, self.cache = BoundedStorage(MAX_KEYS), BoundedStorage(0)
        return self

    async def rpc_store(
        self, request: dht_pb2.StoreRequest, context: P2PContext
    ) -> dht_pb2.StoreResponse:
        _check_number(request.keys)
        return await super().rpc_store(request, context)

    async def rpc_find(
        self, request: dht_pb2.FindRequest, context: P2PContext
    ) -> dht_pb2.FindResponse:
        _check_number(request.keys)
        return await super().rpc_find(request, context)

    async def call_find(self, peer: PeerID, keys: Iterable[DHTID]) -> Any:
        """As hivemind's, but a key lives as long as its longest entry, whatever the peer says."""
        found = await super().call_find(peer, keys)
        return {key: _bounded_find(*result) for key, result in (found or {}).items()} or None

    def _validate_dictionary(self, key_bytes: bytes, dictionary: Any) -> bool:
        """Drop what is invalid and keep the rest: one bad entry must not hide all others."""
        if not isinstance(dictionary, DictionaryDHTValue):
            return False
        with dictionary.freeze():
            for subkey, (value, expiration) in list(dictionary.items()):
                if not self._validate_record(key_bytes, msgpack.packb(subkey), value, expiration):
                    del dictionary[subkey]
        return bool(dictionary)


def _check_number(keys: Sequence[bytes]) -> None:
    if len(keys) > MAX_CALL_KEYS:
        raise ValueError(f"{len(keys)} keys in one call, at most {MAX_CALL_KEYS} are allowed")


def _bounded_find(value: Any, nearest: dict[Any, Any]) -> tuple[Any, dict[Any, Any]]:
    near = dict(itertools.islice(nearest.items(), MAX_NEAREST))
    if value is None:
        return None, near
    latest = max((entry.expiration_time for _, entry in value.value.items()), default=0.0)
    return ValueWithExpiration(value.value, latest), near


def harden() -> None:
    """Put the bounded parts in hivemind's places, for this whole process."""
    MSGPackSerializer.loads = staticmethod(bounded_loads)
    DictionaryDHTValue.store = _store_newer
    hivemind_node.DHTProtocol = SwarmdDirectory


# The peer -----------------------------------------------------------------------------------------


class DirectoryPeer:
    """One running peer of the DHT: p2pd, hivemind's node, and the task that keeps it joined."""

    def __init__(
        self, p2p: Any, node: Any, port: int, peers: Iterable[str], validator: AnnouncementValidator
    ) -> None:
        self.port = port
        self._p2p = p2p
        self._node = node
        self._validator = validator
        self._peers: dict[Any, list[Any]] = {}
        self._new_peers = asyncio.Event()
        self._tried = asyncio.Event()
        self.join(peers)

    @classmethod
    async def create(cls, start: pb.DirectoryStart) -> DirectoryPeer:
        """Start p2pd and join the DHT alone; `keep_joined` finds the others."""
        P2P._UNIX_SOCKET_PREFIX = f"/unix{start.socket_dir}/"
        port = start.port or free_port(start.host)
        check_port(start.host, port)
        p2p = await P2P.create(
            host_maddrs=[_multiaddr(start.host, port)],
            announce_maddrs=[_multiaddr(start.announce_host, port)]
            if start.announce_host
            else None,
            identity_path=start.identity_path,
            check_if_identity_free=False,
            auto_nat=False,
            nat_port_map=False,
            use_relay=False,
        )
        validator = AnnouncementValidator()
        return cls(p2p, await _join_dht(p2p, validator), port, start.peers, validator)

    @property
    def refused(self) -> int:
        """Records of others that were not taken so far; each time that one comes."""
        return self._validator.refused

    def join(self, peers: Iterable[str]) -> None:
        """Add multiaddresses to join through; what is not one is skipped."""
        for text in itertools.islice(peers, MAX_PEERS):
            with contextlib.suppress(Exception):  # the multiaddr parser raises a dozen kinds
                address = Multiaddr(text)
                peer_id = PeerID.from_base58(address["p2p"])
                if peer_id != self._p2p.peer_id:
                    known = self._peers.pop(peer_id, [])
                    self._peers[peer_id] = [*known, address][-MAX_ADDRESSES:]
        while len(self._peers) > MAX_PEERS:
            del self._peers[next(iter(self._peers))]
        self._new_peers.set()

    async def addresses(self) -> list[str]:
        """Return multiaddresses under which others reach this peer."""
        return [str(address) for address in await self._p2p.get_visible_maddrs(latest=True)]

    async def wait_until_tried(self) -> None:
        """Return once each of the first peers was tried, one has answered, or 3 s have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_JOIN_S):
                await self._tried.wait()

    async def keep_joined(self, met: Callable[[list[str]], None]) -> None:
        """Dial the known peers that are not there, again and again; ends only if p2pd does.

        Often at first and when nobody is left, and less often while that fails. `met` is told the
        addresses of connected peers whenever they change.
        """
        loop = asyncio.get_running_loop()
        patience, due = LONELY_RETRY_S[0], 0.0
        told: list[str] | None = None
        while True:
            connected = {peer.peer_id: peer.addrs for peer in await self._p2p.list_peers()}
            # The table keeps the dead until a call to them fails, p2pd those who never answer.
            here = connected.keys() & self._node.protocol.routing_table.peer_id_to_uid.keys()
            if here:
                patience = LONELY_RETRY_S[0]
            else:
                due = min(due, loop.time() + patience)
            if self._new_peers.is_set() or loop.time() >= due:
                self._new_peers.clear()
                await self._join_through(self._peers.keys() - here)
                patience = min(2 * patience, LONELY_RETRY_S[1])
                due = loop.time() + MISSING_RETRY_S * random.uniform(0.8, 1.2)
                continue
            if told != (addresses := _addresses(connected)):
                met(told := addresses)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S if here else min(TICK_S, patience)):
                    await self._new_peers.wait()

    async def _join_through(self, peers: Iterable[Any]) -> None:
        async with asyncio.TaskGroup() as group:
            for peer_id in peers:
                group.create_task(self._dial(peer_id))
        self._tried.set()

    async def _dial(self, peer_id: Any) -> None:
        with contextlib.suppress(Exception):  # a dead peer fails in many ways; it is tried again
            async with asyncio.timeout(JOIN_TIMEOUT_S):
                reachable = [a for a in self._peers[peer_id] if await _is_listening(a)]
                suffix = Multiaddr(f"/p2p/{peer_id.to_base58()}")
                await self._p2p._client.connect(
                    peer_id, [address.decapsulate(suffix) for address in reachable]
                )
                if await self._node.protocol.call_ping(peer_id) is not None:
                    await self._node.find_nearest_nodes([self._node.node_id])
                    self._tried.set()

    async def store(self, records: Sequence[pb.DirectoryRecord]) -> list[bool]:
        """Store on the peers nearest to each key; raises TimeoutError."""
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            stored = await self._node.store_many(
                keys=[record.key for record in records],
                subkeys=[record.subkey for record in records],
                values=[record.value for record in records],
                expiration_time=[record.expires_at for record in records],
            )
        return [bool(stored[record.key, record.subkey]) for record in records]

    async def lookup(self, keys: Sequence[bytes]) -> Iterator[pb.DirectoryRecord]:
        """Return the latest entries under the keys; raises TimeoutError."""
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            found = await self._node.get_many(list(keys), sufficient_expiration_time=math.inf)
        return (
            pb.DirectoryRecord(key=key, subkey=subkey, value=entry.value, expires_at=entry[1])
            for key, held in found.items()
            if held is not None and isinstance(held.value, dict)
            for subkey, entry in held.value.items()
        )

    async def glance(self, keys: Sequence[bytes]) -> Iterator[pb.DirectoryRecord]:
        """Return the entries that one holder of each key has, without asking where it is this one.

        It may lack what did not reach it. Raises TimeoutError, or LookupError for one that fails.
        """
        asked = [asyncio.create_task(self._of_a_holder(DHTID.generate(source=k))) for k in keys]
        # Nothing is cancelled: if its answer comes at that moment, hivemind drops all of them.
        _, late = await asyncio.wait(asked, timeout=GLANCE_TIMEOUT_S)
        if late:
            raise TimeoutError("a holder of announcements is slow to answer")
        held = [task.result() for task in asked]
        if None in held:
            raise LookupError("a holder of announcements does not answer")
        return (
            pb.DirectoryRecord(
                key=key, subkey=subkey, value=_plain_bytes(entry.value), expires_at=entry[1]
            )
            for key, entries in zip(keys, held, strict=True)
            for subkey, entry in entries or ()
        )

    async def _of_a_holder(self, key_id: DHTID) -> list[Any] | None:
        """Return what it has under a key; None if it does not answer."""
        protocol, number, own = self._node.protocol, self._node.num_replicas, self._node.node_id
        others = protocol.routing_table.get_nearest_neighbors(key_id, number, exclude=own)
        if len(others) < number or key_id.xor_distance(own) < key_id.xor_distance(others[-1][0]):
            found = protocol.storage.get(key_id)
        else:
            _, holder = random.choice(others)
            answer = await protocol.call_find(holder, [key_id])
            if answer is None:
                return None
            found, _ = answer[key_id]
        held = found.value if found else None
        return list(held.items()) if isinstance(held, DictionaryDHTValue) else []

    async def wait_for_death(self) -> None:
        """Return when p2pd has ended, or cannot be spoken with: hivemind itself goes on."""
        control = self._p2p._client.control
        tasks = [asyncio.create_task(self._p2p._child.wait())]
        tasks += [task for task in (control._read_task, control._write_task) if task is not None]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)

    async def close(self) -> None:
        await self._p2p.shutdown()


async def _join_dht(p2p: Any, validator: AnnouncementValidator) -> Any:
    """Return hivemind's node on `p2p`, with a DHT id that follows from its key.

    Caching is off: a cached answer can be up to a lease old, and hivemind keeps what it caches for
    as long as the peer that answered says.
    """
    return await hivemind_node.DHTNode.create(
        p2p=p2p,
        node_id=DHTID.generate(source=p2p.peer_id.to_bytes()),
        record_validator=validator,
        wait_timeout=RPC_TIMEOUT_S,
        blacklist_time=1.0,
        cache_locally=False,
        cache_nearest=0,
        cache_on_store=False,
        cache_refresh_before_expiry=0,
    )


def _addresses(connected: dict[Any, Any]) -> list[str]:
    """Return one multiaddress per peer: libp2p dials from the port that it listens on."""
    return sorted(
        f"{address}/p2p/{peer_id.to_base58()}"
        for peer_id, addresses in itertools.islice(connected.items(), MAX_NEIGHBOURS)
        for address in addresses[:1]
    )


async def _is_listening(address: Any) -> bool:
    """Return whether anybody is there, without p2pd.

    p2pd refuses to dial an address for longer and longer after each failure, up to minutes: it must
    not be asked to dial one that is dead.
    """
    kind = next(kind for kind in ("ip4", "ip6", "dns", "dns4", "dns6") if kind in address)
    return await is_listening(address[kind], int(address["tcp"]))


def _multiaddr(host: str, port: int) -> str:
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns"
    return f"/{kind}/{host}/tcp/{port}"


if __name__ == "__main__":
    os.umask(0o077)
    harden()
    asyncio.run(run(DirectoryPeer.create, int(sys.argv[1])))
