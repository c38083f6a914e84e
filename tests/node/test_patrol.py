"""A peer that gives no sign of life twice counts as gone, until it answers or is started anew."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarmd.core.errors import ConfigError, PeerUnreachable
from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.core.span import Span
from swarmd.node import patrol
from swarmd.node.patrol import Patrol
from swarmd.node.peering import introduce
from swarmd.v1 import peer_pb2 as pb

PEER = Announcement(
    peer_id="ab" * 20,
    address="127.0.0.1:1",
    model=ModelInfo("demo", "cd" * 32, 8, 64, 100, 512),
    span=Span(0, 4),
    state=NodeState.SERVING,
    issued_at=0.0,
    expires_at=30.0,
    pid=7,
)


async def test_nobody_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patrol, "AGAIN_S", 0.0)
    one = Patrol("me", introduce)
    await one.go_round([PEER])
    assert one.gone([PEER]) == {PEER.peer_id}
    assert one.gone([replace(PEER, pid=8)]) == frozenset()


async def test_one_miss_is_none_and_an_answer_takes_it_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = iter([False, True, False, False, True])

    async def answer(address: str, own_id: str) -> pb.IntroduceReply:
        if not next(answers):
            raise PeerUnreachable("no answer")
        return pb.IntroduceReply(peer_id=PEER.peer_id)

    monkeypatch.setattr(patrol, "AGAIN_S", 0.0)
    one = Patrol("me", answer)
    await one.go_round([PEER])
    assert not one.gone([PEER])
    await one.go_round([PEER])
    assert one.gone([PEER])
    await one.go_round([PEER])
    assert not one.gone([PEER])


async def test_one_that_was_started_anew_does_not_speak_for_the_one_before_it() -> None:
    since = PEER.issued_at

    async def answer(address: str, own_id: str) -> pb.IntroduceReply:
        return pb.IntroduceReply(peer_id=PEER.peer_id, announced_since_s=since)

    one = Patrol("me", answer)
    await one.go_round([PEER])
    assert not one.gone([PEER])
    since = 12.5
    await one.go_round([PEER])
    assert one.gone([PEER]) == {PEER.peer_id}
    assert not one.gone([replace(PEER, issued_at=since)]), "in a container it has the same pid"


async def test_of_the_silent_no_more_are_remembered_than_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nobody(address: str, own_id: str) -> pb.IntroduceReply:
        raise ConfigError(f"{address!r} is no address")

    monkeypatch.setattr(patrol, "AGAIN_S", 0.0)
    monkeypatch.setattr(patrol, "MAX_SILENT", 3)
    one = Patrol("me", nobody)
    peers = [replace(PEER, pid=pid) for pid in range(10, 15)]
    for peer in peers:
        await one.go_round([peer])
    assert [bool(one.gone([peer])) for peer in peers] == [False, False, True, True, True]
