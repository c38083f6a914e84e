"""The DHT with real processes on loopback: found, withdrawn, killed, restarted, lied to."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from swarm_peers import peer

from swarmd.core.clock import SystemClock
from swarmd.core.errors import ConfigError, DirectoryError
from swarmd.core.peers import Announcement, NodeState
from swarmd.swarm import dht_process
from swarmd.swarm.dht import DhtConfig, DhtDirectory, backoff_s
from swarmd.swarm.dht_process import DirectoryProcess
from swarmd.swarm.identity import Identity, dht_key_file
from swarmd.swarm.pipe import read_message, write_message
from swarmd.swarm.records import MODELS_KEY, Record, decode, model_key, records_of, sign
from swarmd.v1 import directory_pb2 as pb

PATIENCE_S = 60.0
DEAD = "/ip4/127.0.0.1/tcp/9/p2p/12D3KooWSePQjKfEyuv8Vf31NAkL9aAfQdoDRJjh3VjeL7J86BcJ"


def announce(identity: Identity, **fields: Any) -> Announcement:
    now = time.time()
    values = {"peer_id": identity.peer_id, "issued_at": now, "expires_at": now + 30}
    return peer(1, 0, 8, **{**values, **fields})


async def until(condition: Callable[[], Awaitable[bool]]) -> float:
    """Ask until it is so, and return the seconds that it took."""
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 (what is waited for is in another process)
            await asyncio.sleep(0.02)
    return time.monotonic() - began


async def sees(
    directory: DhtDirectory, identity: Identity, state: NodeState = NodeState.SERVING
) -> bool:
    found = {a.peer_id: a.state for a in await directory.announcements()}
    return found.get(identity.peer_id) is state


async def knows_others(directory: DhtDirectory) -> bool:
    return len(directory.addresses()) > 1


def p2pd_of(directory: DhtDirectory) -> psutil.Process:
    assert directory.child_pid is not None
    (p2pd,) = psutil.Process(directory.child_pid).children()
    assert "p2pd" in p2pd.name()
    return p2pd


def is_dead(process: psutil.Process) -> bool:
    """Whether it has ended, though nobody may have asked for its exit status yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Nodes:
    """Starts directories, each with a state directory and an identity, and closes them all."""

    def __init__(self, base: Path, stack: AsyncExitStack) -> None:
        self._base = base
        self._stack = stack

    async def start(self, name: str, *peers: str, **config: Any) -> tuple[DhtDirectory, Identity]:
        identity = Identity.load_or_create(self._base / name)
        settings = DhtConfig(self._base / name, peers=peers, **config)
        directory = await DhtDirectory.start(settings, identity)
        self._stack.push_async_callback(directory.close)
        return directory, identity


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    async with AsyncExitStack() as stack:
        yield Nodes(tmp_path, stack)
    after = {process.pid for process in psutil.Process().children(recursive=True)}
    assert after <= before, "close() left processes behind"


async def test_a_new_process_joins_first_through_those_that_were_there_lately(
    tmp_path: Path,
) -> None:
    identity = Identity.load_or_create(tmp_path)
    configured = [DEAD.replace("/9/", f"/{port}/") for port in range(1, 65)]
    directory = DhtDirectory(DhtConfig(tmp_path, peers=configured), identity, SystemClock())
    directory._meet(["there"])
    assert directory.known() == ["there", *configured]


async def test_nodes_find_each_other_and_notice_who_leaves(nodes: Nodes) -> None:
    first, me = await nodes.start("first")
    await first.publish(announce(me))
    second, other = await nodes.start("second", *first.addresses())
    third, _ = await nodes.start("third", *first.addresses())
    await second.publish(announce(other, span=peer(1, 2, 5).span))
    # A third node that has published nothing sees both of the others.
    seen = [await until(lambda i=i: sees(third, i)) for i in (me, other)]  # type: ignore[misc]
    print("visible after", seen)
    (found,) = [a for a in await third.announcements() if a.peer_id == other.peer_id]
    assert (found.span.start, found.span.end) == (2, 5)
    assert len(await third.announcements()) == 2

    await second.publish(announce(other, state=NodeState.DRAINING))
    await until(lambda: sees(first, other, NodeState.DRAINING))
    await second.withdraw(other.peer_id)
    gone = await until(lambda: sees(third, other, NodeState.GONE))
    print("gone after", gone)
    assert not await sees(first, other)


async def test_one_who_waits_is_told_when_something_has_changed(nodes: Nodes) -> None:
    first, me = await nodes.start("first")
    second, _ = await nodes.start("second", *first.addresses())
    await first.publish(announce(me))
    await until(lambda: sees(second, me))
    before = await second.announcements()
    waiting = asyncio.create_task(second.announcements(30.0))
    # The process is asked and answers meanwhile; the one who waits it lets wait.
    assert await second.announcements() == before
    assert not waiting.done()
    await first.publish(announce(me, step_ms=5.0))
    (found,) = await waiting
    assert found.step_ms == 5.0
    # When the time is up it is told what it knows.
    assert await second.announcements(0.01) == [found]


@pytest.mark.parametrize("victim", ["child", "p2pd"])
async def test_a_killed_process_is_replaced_under_the_same_name(nodes: Nodes, victim: str) -> None:
    # The killed one is the swarm's first: it was given nobody to join through.
    first, me = await nodes.start("first")
    second, other = await nodes.start("second", first.addresses()[0])
    await first.publish(announce(me))
    await second.publish(announce(other))
    await until(lambda: sees(first, other))
    await until(lambda: sees(second, me))
    await until(lambda: knows_others(first))
    address, p2pd = first.addresses()[0], p2pd_of(first)
    child = psutil.Process(first.child_pid)

    began = time.monotonic()
    (child if victim == "child" else p2pd).send_signal(signal.SIGKILL)
    await until(lambda: asyncio.sleep(0, first.restarts == 1))
    await until(lambda: sees(first, other))
    await first.publish(announce(me, step_ms=77.0))

    async def second_sees_news() -> bool:
        found = await second.announcements()
        return any(a.peer_id == me.peer_id and a.step_ms == 77.0 for a in found)

    await until(second_sees_news)
    print("recovered after", time.monotonic() - began)
    assert first.addresses()[0] == address
    assert is_dead(p2pd)
    assert is_dead(child)


async def test_what_was_published_is_stored_again_after_a_restart(nodes: Nodes) -> None:
    directory, me = await nodes.start("only")
    await directory.publish(announce(me))
    assert directory.child_pid is not None
    os.kill(directory.child_pid, signal.SIGKILL)
    await until(lambda: asyncio.sleep(0, directory.restarts == 1))
    # Another node reads it from the new process, not from the first one's memory.
    reader, _ = await nodes.start("reader", directory.addresses()[0])
    await until(lambda: sees(reader, me))


async def test_a_process_that_hangs_is_replaced(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, me = await nodes.start("only")
    await directory.publish(announce(me))
    assert directory.child_pid is not None
    with monkeypatch.context() as patch:
        patch.setattr(dht_process, "REPLY_TIMEOUT_S", 1.0)
        os.kill(directory.child_pid, signal.SIGSTOP)
        with pytest.raises(DirectoryError, match="silent for 1 s"):
            await directory.announcements()
    await until(lambda: sees(directory, me))
    assert directory.restarts == 1


async def test_a_process_that_cannot_be_started_for_a_while_comes_back(
    nodes: Nodes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory, me = await nodes.start("only")
    await directory.publish(announce(me))
    # The state directory is lost, and where it was nothing can be written.
    shutil.rmtree(tmp_path / "only")
    (tmp_path / "only").write_text("")
    assert directory.child_pid is not None
    os.kill(directory.child_pid, signal.SIGKILL)
    await until(lambda: asyncio.sleep(0, "does not start" in caplog.text))
    assert str(tmp_path / "only") in caplog.text
    (tmp_path / "only").unlink()
    await until(lambda: asyncio.sleep(0, directory.restarts == 1))
    reader, _ = await nodes.start("reader", directory.addresses()[0])
    await until(lambda: sees(reader, me))


async def test_whatever_goes_wrong_on_the_way_there_is_another_process(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, me = await nodes.start("only")
    await directory.publish(announce(me))
    stop, spawn, broken = DirectoryProcess.stop, DirectoryProcess.spawn, 2

    async def stops_badly(child: DirectoryProcess) -> None:
        await stop(child)
        raise RuntimeError("can't start new thread")

    async def starts_badly(*args: Any) -> DirectoryProcess:
        nonlocal broken
        broken -= 1
        if broken:
            raise MemoryError
        monkeypatch.undo()
        return await spawn(*args)

    monkeypatch.setattr(DirectoryProcess, "stop", stops_badly)
    monkeypatch.setattr(DirectoryProcess, "spawn", starts_badly)
    assert directory.child_pid is not None
    os.kill(directory.child_pid, signal.SIGKILL)
    await until(lambda: asyncio.sleep(0, directory.restarts == 1))
    await until(lambda: sees(directory, me))


async def test_publishing_while_the_process_is_down_is_not_lost(nodes: Nodes) -> None:
    directory, me = await nodes.start("only")
    reader, _ = await nodes.start("reader", directory.addresses()[0])
    await until(lambda: knows_others(directory))
    assert directory.child_pid is not None
    os.kill(directory.child_pid, signal.SIGKILL)
    await directory.publish(announce(me))
    assert (directory.stats.sent, directory.stats.failed) == (0, 1), "not yet"
    await until(lambda: sees(reader, me))
    # The reader may see it before the new process has confirmed that it is stored.
    await until(lambda: asyncio.sleep(0, directory.restarts == 1))
    await directory.publish(announce(me, step_ms=5.0))
    assert (directory.stats.sent, directory.stats.failed, directory.stats.refused) == (1, 1, 0)


async def test_what_nobody_takes_and_what_is_not_taken_here_is_counted(tmp_path: Path) -> None:
    class Child:
        stored = [True, False]  # somebody else has renewed the place of the model
        refused = 0

        async def ask(self, command: pb.DirectoryCommand, *timeout: object) -> pb.DirectoryReply:
            if command.HasField("store"):
                return pb.DirectoryReply(stored=pb.DirectoryStored(stored=self.stored))
            found = pb.DirectoryFound(version=b"v", refused=self.refused)
            return pb.DirectoryReply(found=found)

        has_ended = False

    me, child = Identity.generate(), Child()
    directory = DhtDirectory(DhtConfig(tmp_path), me, SystemClock())
    directory._child = child  # type: ignore[assignment]
    directory._ready.set()
    await directory.publish(announce(me))
    child.stored = [False, True]
    await directory.publish(announce(me, step_ms=5.0))
    for refused in (5, 7, 7, 2, 3):  # a new process begins anew
        child.refused = refused
        await directory.announcements()
    stats = directory.stats
    assert (stats.sent, stats.failed, stats.refused) == (1, 0, 1)
    assert stats.records_refused == 7 + 3


async def test_a_restarted_node_keeps_identity_and_port(nodes: Nodes) -> None:
    before, _ = await nodes.start("node")
    port = int(before.addresses()[0].split("/")[4])
    await before.close()
    after, _ = await nodes.start("node", port=port)
    assert after.addresses()[0] == before.addresses()[0]


async def test_dead_bootstraps_do_not_keep_a_node_out(nodes: Nodes) -> None:
    first, me = await nodes.start("first")
    await first.publish(announce(me))
    second, _ = await nodes.start("second", DEAD, "not an address", first.addresses()[0])
    await until(lambda: sees(second, me))


async def test_a_node_whose_bootstraps_are_all_dead_joins_when_one_returns(nodes: Nodes) -> None:
    first, me = await nodes.start("first")
    address = first.addresses()[0]
    await first.close()
    second, other = await nodes.start("second", DEAD, address)
    await second.publish(announce(other))
    assert await sees(second, other)
    again, _ = await nodes.start("first", port=int(address.split("/")[4]))
    await again.publish(announce(me))
    await until(lambda: sees(second, me))
    await until(lambda: sees(again, other))


async def test_a_node_can_join_later(nodes: Nodes) -> None:
    first, me = await nodes.start("first")
    second, other = await nodes.start("second")
    await first.publish(announce(me))
    await second.publish(announce(other))
    assert not await sees(second, me)
    await second.join(first.addresses())
    await until(lambda: sees(second, me))
    await until(lambda: sees(first, other))


async def test_a_port_in_use_is_an_error_at_start(nodes: Nodes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(DirectoryError, match="in use"):
            await nodes.start("node", port=port)


async def test_a_node_publishes_only_for_itself(nodes: Nodes) -> None:
    directory, _ = await nodes.start("node")
    with pytest.raises(ConfigError, match="cannot sign"):
        await directory.publish(announce(Identity.generate()))


def test_the_directory_works_under_uvloop(tmp_path: Path) -> None:
    async def life() -> bool:
        identity = Identity.generate()
        directory = await DhtDirectory.start(DhtConfig(tmp_path), identity)
        try:
            await directory.publish(announce(identity))
            return await sees(directory, identity)
        finally:
            await directory.close()

    assert uvloop.run(life())


def test_pauses_between_restarts_grow_to_a_limit() -> None:
    assert [backoff_s(n) for n in (0, 1, 2, 99)] == [0.1, 0.2, 0.4, 10.0]


# One process alone, spoken to as a hostile or dying parent would ----------------------------------


class Raw:
    """A directory process without a `DhtDirectory`: anything can be asked of it."""

    def __init__(self, process: subprocess.Popen[bytes], ours: socket.socket) -> None:
        self.process = process
        self.socket = ours
        self._count = 0

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self.socket)

    async def close(self) -> None:
        self._writer.close()
        await asyncio.to_thread(self.process.wait, PATIENCE_S)

    async def ask(self, **body: Any) -> pb.DirectoryReply:
        self._count += 1
        command = pb.DirectoryCommand(id=self._count, **body)
        write_message(self._writer, command.SerializeToString())
        async with asyncio.timeout(PATIENCE_S):
            while message := await read_message(self._reader):
                reply = pb.DirectoryReply.FromString(message)
                if reply.id == command.id:
                    return reply
        raise AssertionError("the process closed its socket")

    async def store(self, *records: Record) -> list[bool]:
        entries = [
            pb.DirectoryRecord(key=r.key, subkey=r.subkey, value=r.value, expires_at=r.expires_at)
            for r in records
        ]
        reply = await self.ask(store=pb.DirectoryStore(records=entries))
        return list(reply.stored.stored)


def execute() -> Raw:
    ours, theirs = socket.socketpair()
    with theirs:
        number = theirs.fileno()
        command = [sys.executable, "-m", "swarmd.swarm.dht_child", str(number)]
        return Raw(subprocess.Popen(command, pass_fds=[number]), ours)


@pytest.fixture
async def raw(tmp_path: Path) -> AsyncIterator[Raw]:
    child = execute()
    await child.open()
    sockets = tmp_path / "sockets"
    sockets.mkdir()
    start = pb.DirectoryStart(
        host="127.0.0.1", identity_path=str(dht_key_file(tmp_path)), socket_dir=str(sockets)
    )
    assert (await child.ask(start=start)).HasField("started")
    yield child
    await child.close()


async def test_only_records_that_prove_themselves_are_kept(raw: Raw) -> None:
    me, other = Identity.generate(), Identity.generate()
    own, listed = records_of(sign(announce(me), me))
    assert await raw.store(own, listed) == [True, True]
    refused = [
        replace(own, subkey=bytes.fromhex(other.peer_id)),
        replace(own, subkey=b""),
        replace(own, key=model_key("cd" * 32)),
        replace(own, key=b"anything"),
        replace(own, key=MODELS_KEY),
        replace(listed, subkey=bytes(32)),
        replace(own, expires_at=own.expires_at + 1),
        replace(own, value=own.value[:-1]),
        replace(own, value=b"garbage"),
        replace(own, value=bytes(100_000)),
    ]
    for record in refused:
        assert await raw.store(record) == [False], record
    found = (await raw.ask(survey=pb.DirectorySurvey())).found
    assert [decode(r.value, time.time()).peer_id for r in found.records] == [me.peer_id]
    assert found.refused >= len(refused) - 1  # one is too large to be sent at all


async def test_a_record_whose_time_is_over_is_nothing_to_speak_of(raw: Raw) -> None:
    me, now = Identity.generate(), time.time()
    late, _ = records_of(sign(announce(me, issued_at=now - 9, expires_at=now + 0.05), me))
    await asyncio.sleep(0.1)
    assert await raw.store(late) == [False]
    assert (await raw.ask(survey=pb.DirectorySurvey())).found.refused == 0


async def test_an_older_record_does_not_disturb_a_newer_one(raw: Raw) -> None:
    me = Identity.generate()
    now = time.time()
    new, listed = records_of(sign(announce(me), me))
    (old, _) = records_of(sign(announce(me, issued_at=now - 9, expires_at=now + 0.5), me))
    assert await raw.store(new, listed) == [True, True]
    assert await raw.store(old) == [False]

    async def old_one_has_expired() -> bool:
        return time.time() > old.expires_at

    await until(old_one_has_expired)
    found = (await raw.ask(survey=pb.DirectorySurvey())).found
    assert [r.value for r in found.records] == [new.value]


async def test_a_command_that_makes_no_sense_is_answered(raw: Raw) -> None:
    assert "unknown command" in (await raw.ask()).failed.message
    assert (await raw.ask(join=pb.DirectoryJoin(peers=["?"]))).HasField("joined")


async def test_the_process_and_its_p2pd_end_with_their_parent(raw: Raw) -> None:
    (p2pd,) = psutil.Process(raw.process.pid).children()
    await raw.close()
    assert is_dead(p2pd)


async def test_a_signal_to_the_group_does_not_end_it_before_its_parent_does(raw: Raw) -> None:
    raw.process.send_signal(signal.SIGTERM)
    raw.process.send_signal(signal.SIGINT)
    me = Identity.generate()
    assert await raw.store(records_of(sign(announce(me), me))[0]) == [True]


WITHOUT_HIVEMIND = """
import sys
import swarmd.swarm.dht
assert not {"hivemind", "torch", "msgpack"} & set(sys.modules)
"""

LAID_OUT_DIFFERENTLY = """
import importlib, sys
whole = importlib.import_module

def refuse(name, *rest):
    if not name.startswith("hivemind"):
        return whole(name, *rest)
    importlib.import_module = whole
    raise ImportError(name)

importlib.import_module = refuse
from swarmd.swarm.bare_import import import_bare
import_bare()
assert importlib.import_module is whole
assert not [name for name in sys.modules if name.startswith("hivemind")]
"""

CHECKS = """
import math, resource, sys, time
import msgpack
from swarmd.swarm import dht_child
from swarmd.swarm.dht_child import *

assert "torch" not in sys.modules
harden()

def refused(data):
    try:
        MSGPackSerializer.loads(data)
    except (ValueError, TypeError, msgpack.UnpackException):
        return True

def dictionary(*entries, code=0x50):
    body = msgpack.packb([None, 1e300, list(entries)])
    return msgpack.packb(msgpack.ExtType(code, body))

nested = b""
for _ in range(10_000):
    nested = msgpack.packb(msgpack.ExtType(0x40, nested))
    if len(nested) > 1_000_000: break
assert refused(nested)
assert refused(b"\\x91" * 1_000_000)
assert refused(bytes(3 << 20))
assert refused(dictionary(code=0x40))
assert refused(dictionary([b"k", b"v", math.inf]))
assert refused(dictionary([b"k", b"v", math.nan]))
assert refused(dictionary([b"k", [1], 5.0]))
assert refused(dictionary([[], b"v", 5.0]))
assert refused(dictionary([b"k", msgpack.ExtType(0x50, b""), 5.0]))
assert refused(dictionary(5))

# Good entries survive the bad ones beside them, and a peer cannot say how long a key lives.
soon = time.time() + 20
held = MSGPackSerializer.loads(dictionary([b"k", b"v", soon], [b"l", b"w", soon + 5]))
assert {k: v.value for k, v in held.items()} == {b"k": b"v", b"l": b"w"}
assert held.latest_expiration_time == soon + 5
protocol = SwarmdDirectory(_initialized_with_create=True)
class OnlyK:
    def validate(self, record): return record.value == b"v"
protocol.record_validator = OnlyK()
assert protocol._validate_dictionary(b"key", held)
assert list(held.data) == [b"k"]
value, near = dht_child._bounded_find(ValueWithExpiration(held, math.inf), dict.fromkeys(range(99)))
assert value.expiration_time == soon and len(near) == 20
assert not protocol._validate_dictionary(b"key", MSGPackSerializer.loads(dictionary()))

# Limits on keys and subkeys.
full = DictionaryDHTValue()
stored = [full.store(str(n).encode(), b"v", soon) for n in range(MAX_SUBKEYS + 10)]
assert stored.count(True) == len(full) == MAX_SUBKEYS
assert full.store(b"0", b"new", soon + 1) and not full.store(b"0", b"old", soon)
storage = BoundedStorage(3)
assert [storage.store(n, b"v", soon, subkey=b"s") for n in range(4)] == [True, True, True, False]
assert storage.store(0, b"w", soon + 1, subkey=b"s")
"""


# A peer of the DHT that keeps no rules, speaking to the one whose address it is given.
STRANGER = """
import asyncio, sys, tempfile, time
import msgpack
from swarmd.swarm import dht_child
from swarmd.swarm.dht_child import *
from swarmd.swarm.identity import dht_key_file
from pathlib import Path

hivemind_node.DHTProtocol = SwarmdDirectory
KEY = sys.argv[2].encode()

async def main():
    folder = tempfile.mkdtemp()
    start = pb.DirectoryStart(
        host="127.0.0.1", identity_path=str(dht_key_file(Path(folder))), socket_dir=folder
    )
    peer = await DirectoryPeer.create(start)
    address = Multiaddr(sys.argv[1])
    victim = PeerID.from_base58(address["p2p"])
    place = address.decapsulate(Multiaddr("/p2p/" + address["p2p"]))
    await peer._p2p._client.connect(victim, [place])
    protocol = peer._node.protocol
    assert await protocol.call_ping(victim) is not None
    key, soon = DHTID.generate(source=KEY), time.time() + 20

    async def send(tag, value, **more):
        request = dht_pb2.StoreRequest(
            keys=[key.to_bytes()], subkeys=[tag], values=[value], expiration_time=[soon],
            in_cache=[more.get("in_cache", False)], peer=protocol.node_info,
        )
        try:
            return list((await protocol.get_stub(victim).rpc_store(request, timeout=20)).store_ok)
        except Exception as error:
            return repr(error)

    garbage = msgpack.packb(b"garbage")
    forged = DictionaryDHTValue()
    for n in range(50):
        forged.store(bytes([n]) * 20, garbage, soon)
    nested = b""
    for _ in range(3000):
        nested = msgpack.packb(msgpack.ExtType(0x40, nested))
    for tag, value, more in [
        (msgpack.packb(None), garbage, {}),
        (msgpack.packb(bytes(20)), garbage, {}),
        (msgpack.packb(bytes(20)), garbage, {"in_cache": True}),
        (b"", MSGPackSerializer.dumps(forged), {}),
        (b"", nested, {}),
        (b"", bytes([0x91]) * 1_000_000, {}),
        (nested, garbage, {}),
    ]:
        answer = await send(tag, value, **more)
        assert answer == [False] or "Error" in str(answer), answer
    await peer.close()

asyncio.run(main())
"""


async def test_a_stranger_in_the_dht_can_neither_forge_nor_crash(nodes: Nodes) -> None:
    victim, me = await nodes.start("victim")
    await victim.publish(announce(me))
    pid = victim.child_pid
    key = model_key("ab" * 32).decode()
    command = [sys.executable, "-c", STRANGER, victim.addresses()[0], key]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=PATIENCE_S)
    reader, _ = await nodes.start("reader", victim.addresses()[0])
    await until(lambda: sees(reader, me))
    assert [a.peer_id for a in await reader.announcements()] == [me.peer_id]
    assert victim.child_pid == pid
    assert victim.restarts == 0


def test_what_strangers_send_is_bounded() -> None:
    """In a process of its own, since hivemind may not be loaded into this one."""
    subprocess.run([sys.executable, "-c", CHECKS], check=True, timeout=PATIENCE_S)


@pytest.mark.parametrize("program", [WITHOUT_HIVEMIND, LAID_OUT_DIFFERENTLY])
def test_only_the_child_imports_hivemind_and_it_as_little_as_it_can(program: str) -> None:
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_S)


async def test_a_start_that_is_given_up_does_not_wait_for_a_process_that_is_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawned: asyncio.Future[DirectoryProcess] = asyncio.get_running_loop().create_future()
    spawn = DirectoryProcess.spawn

    async def seen(met: Callable[..., None]) -> DirectoryProcess:
        child = await spawn(met)
        spawned.set_result(child)
        return child

    monkeypatch.setattr(DirectoryProcess, "spawn", seen)
    starting = asyncio.create_task(
        DhtDirectory.start(DhtConfig(tmp_path), Identity.load_or_create(tmp_path))
    )
    child = await spawned
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert child.process.returncode == -signal.SIGKILL
