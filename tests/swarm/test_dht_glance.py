"""Two real peers of the DHT, of which one holds a key: both see at a glance what comes under it.

In a process of their own, as whoever imports hivemind starts more of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import asyncio, contextlib, json, os, sys, tempfile, time
from pathlib import Path
from swarm_peers import peer as announced
from swarmd.swarm import dht_child
from swarmd.swarm.dht_child import DirectoryPeer
from swarmd.swarm.identity import Identity, dht_key_file
from swarmd.swarm.records import model_key, records_of, sign
from swarmd.v1 import directory_pb2 as pb

async def start(directory, *addresses):
    command = pb.DirectoryStart(
        host="127.0.0.1", identity_path=str(dht_key_file(directory)), peers=addresses,
        socket_dir=tempfile.mkdtemp(dir=directory),
    )
    peer = await DirectoryPeer.create(command)
    peer._node.num_replicas = 1
    task = asyncio.create_task(peer.keep_joined(lambda addresses: None))
    await peer.wait_until_tried()
    return peer, task

async def main(base):
    dht_child.harden()
    owner = Identity.load_or_create(base / "0")
    Identity.load_or_create(base / "1")
    first, one = await start(base / "0")
    second, other = await start(base / "1", *await first.addresses())
    now = time.time()
    signed = sign(
        announced(1, 0, 8, peer_id=owner.peer_id, issued_at=now, expires_at=now + 60), owner
    )
    records = [
        pb.DirectoryRecord(key=r.key, subkey=r.subkey, value=r.value, expires_at=r.expires_at)
        for r in records_of(signed)
    ]
    assert all(await second.store(records))
    keys = [record.key for record in records]
    sent = {record.SerializeToString() for record in records}
    told = {}
    for name, peer in (("first", first), ("second", second)):
        asked = []
        find = peer._node.protocol.call_find
        async def counting(*args, find=find, asked=asked):
            asked.append(args)
            return await find(*args)
        peer._node.protocol.call_find = counting
        found = {record.SerializeToString() for record in await peer.glance(keys)}
        told[name] = {"all": found == sent, "asked": len(asked)}
    holder = {name: sum(p._node.protocol.storage.get(
        dht_child.DHTID.generate(source=key)) is not None for key in keys)
        for name, p in (("first", first), ("second", second))}
    print(json.dumps({"told": told, "holds": holder, "keys": len(keys)}))
    one.cancel(), other.cancel()
    await first.close()
    if await second._of_a_holder(_far_from(second, first, dht_child)) is None:
        print("lost")
    await second.close()
    os._exit(0)

def _far_from(peer, other, dht_child):
    own, others = peer._node.node_id, other._node.node_id
    for number in range(1000):
        key = dht_child.DHTID.generate(source=b"%d" % number)
        if key.xor_distance(others) < key.xor_distance(own):
            return key

asyncio.run(main(Path(sys.argv[1])))
"""


def test_a_glance_shows_what_one_holder_has_and_asks_no_more_than_that(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parent
    )
    assert done.returncode == 0, done.stderr
    line, lost = done.stdout.splitlines()
    seen = json.loads(line)
    for name, told in seen["told"].items():
        assert told["all"], f"{name} does not see all: {seen}"
        # Where it holds a key itself it asks nobody, else one.
        assert told["asked"] == seen["keys"] - seen["holds"][name]
    assert sum(seen["holds"].values()) == seen["keys"], "each key has one holder"
    assert lost == "lost"
