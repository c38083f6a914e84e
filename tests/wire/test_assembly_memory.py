"""However many links hold unfinished frames, together they take a bounded amount of memory."""

from __future__ import annotations

import frame_values as values
import grpc
import pytest
from wire_nodes import A, B, C, D, Node, close_frame, hello, stranger

from swarmd.core.errors import ProtocolError, QueueFull
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import encoding
from swarmd.wire.assembler import Assembler
from swarmd.wire.assembly_memory import AssemblyMemory

KIB = 1 << 10


def piece(nbytes: int, *, frame: int = 1, offset: int = 0, total: int = 1 << 20) -> pb.Fragment:
    return pb.Fragment(frame=frame, total_bytes=total, offset=offset, data=bytes(nbytes))


class Links:
    """Assemblers with one memory, and what those were told that had to go."""

    def __init__(self, count: int, memory: AssemblyMemory) -> None:
        self.evicted: dict[int, QueueFull] = {}
        self.all = [
            Assembler(memory=memory, on_evicted=lambda error, n=n: self.evicted.update({n: error}))
            for n in range(count)
        ]


def test_all_links_of_a_node_share_one_budget() -> None:
    memory = AssemblyMemory(1000)
    links = Links(3, memory)
    for link in links.all:
        link.add(piece(300))
    assert memory.held_bytes == 900
    with pytest.raises(QueueFull, match=r"exceed 1000 bytes, .* this link with 500: send less"):
        links.all[1].add(piece(200, offset=300))
    assert links.evicted == {}
    links.all[1].clear()  # what the link does when it ends
    links.all[0].add(piece(200, offset=300))
    assert memory.held_bytes == 800


def test_what_holds_most_makes_room_for_the_others() -> None:
    memory = AssemblyMemory(1000)
    hoarder, modest, newcomer = (links := Links(3, memory)).all
    hoarder.add(piece(700))
    modest.add(piece(200))
    newcomer.add(piece(150))
    assert list(links.evicted) == [0]
    assert "with 700" in str(links.evicted[0])
    assert (hoarder.held_bytes, memory.held_bytes) == (0, 350)
    modest.add(piece(600, offset=200))
    assert memory.held_bytes == 950


def test_frames_that_are_whole_take_nothing() -> None:
    memory = AssemblyMemory(10 * KIB)
    assembler = Assembler(memory=memory)
    data = encoding.encode(values.hidden_step(1, 4000)).SerializeToString()
    for number in range(20):
        for at in range(0, len(data), 1000):
            part = data[at : at + 1000]
            assembler.add(pb.Fragment(frame=number, total_bytes=len(data), offset=at, data=part))
    assert memory.held_bytes == 0


def test_a_piece_that_is_refused_takes_nothing() -> None:
    memory = AssemblyMemory()
    assembler = Assembler(memory=memory, max_total_bytes=500)
    assembler.add(piece(300))
    for wrong in (piece(300, offset=300), piece(10, offset=7)):
        with pytest.raises(ProtocolError):
            assembler.add(wrong)
    assert memory.held_bytes == assembler.held_bytes == 300


@pytest.mark.usefixtures("quiet")
async def test_a_link_that_takes_the_last_memory_is_closed_by_name_and_others_go_on() -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b:
        a.links.memory = AssemblyMemory(600 * KIB)
        parked = pb.Frame(fragment=piece(400 * KIB))
        first_says = (hello(C), parked, close_frame(1))
        async with stranger(a, *first_says) as first, stranger(a, hello(D)) as second:
            await a.handler.frames_from(C, 1)
            assert a.links.memory.held_bytes == 400 * KIB
            await second.say(parked)  # as much as the first: not the first's fault
            code, details = await second.refusal()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "would exceed 614400 bytes" in details
            assert dict(await second.call.trailing_metadata())["swarmd-error"] == "QueueFull"
            # A neighbour with a frame of two pieces, while the first parks its own.
            b.links.send(A, [values.hidden_step(1, 300 * KIB)])
            assert len(await a.handler.frames_from(B, 1)) == 1
            code, _ = await first.refusal()
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert [peer for peer, _ in a.handler.lost] == [D, C]
        assert a.links.memory.held_bytes == 0


@pytest.mark.usefixtures("quiet")
async def test_a_link_that_ends_gives_back_what_it_held() -> None:
    async with Node(A, {}) as a:
        parked = pb.Frame(fragment=piece(100 * KIB))
        async with stranger(a, hello(C), parked, close_frame(1)):
            await a.handler.frames_from(C, 1)
            assert a.links.memory.held_bytes == 100 * KIB
        await a.handler.loss_of(C)
        assert a.links.memory.held_bytes == 0
