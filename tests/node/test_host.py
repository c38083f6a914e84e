"""A hop on the event loop: what came while its node stood still."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from swarmd.core.frames import Close, Keep, Open, SessionFrame
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.node import host
from swarmd.node.executor import Executor
from swarmd.node.host import StageHost
from swarmd.pipeline.hop import HopPolicy, HopTable, StageFacts
from swarmd.toys import ToyAccount, toy_model

MODEL = toy_model()
SESSION = b"s" * 16


class Idle:
    """Takes what it is told to do."""

    def put(self, *operations: Any) -> None:
        """Nothing is computed here."""


def opening(**changes: Any) -> Open:
    """What a coordinator `a` sends to a peer that is to have all blocks."""
    order = Open(
        session=SESSION,
        secret=bytes(16),
        epoch=1,
        fresh=True,
        model_digest=MODEL.digest,
        blocks=Span(0, 8),
        next_peer="",
        prev_peer="a",
        max_positions=20,
        prompt_tokens=5,
        sampling=SamplingParams(),
        token_ids=(1,) * 5,
    )
    return replace(order, **changes)


async def test_who_takes_a_copy_dials_the_neighbours_it_will_have() -> None:
    sent: list[tuple[str, Sequence[SessionFrame]]] = []

    def send(peer_id: str, frames: Sequence[SessionFrame]) -> None:
        sent.append((peer_id, frames))

    facts = StageFacts(MODEL, Span(2, 4))
    table = HopTable(facts, ToyAccount(1 << 20), HopPolicy())
    one = StageHost(table, cast(Executor, Idle()), send)
    order = opening(blocks=Span(2, 4), next_peer="n", prev_peer="p", donor="d", fresh=False)
    one.on_frames("a", [order])
    one.close()
    (answer,) = [frames for peer_id, frames in sent if peer_id == "a"]
    assert len(answer) == 1
    assert sorted(peer_id for peer_id, frames in sent if not frames) == ["n", "p"]


async def test_a_node_that_overslept_frees_what_has_lapsed_before_it_listens() -> None:
    loop = asyncio.get_running_loop()
    sent: list[SessionFrame] = []

    def send(peer_id: str, frames: Sequence[SessionFrame]) -> None:
        sent.extend(frames)

    facts = StageFacts(MODEL, Span(0, 8))
    table = HopTable(facts, ToyAccount(1 << 20), HopPolicy(orphan_grace=0.001, reservation=0.001))
    one = StageHost(table, cast(Executor, Idle()), send)
    one.on_frames("a", [opening()])
    assert SESSION in table.sessions
    # The loop has no chance to tick until all is late: as after a SIGSTOP.
    until = loop.time() + host.OVERSLEPT_S + 0.1
    while loop.time() < until:
        pass
    one.on_frames("a", [Keep((SESSION,))])
    one.close()
    assert SESSION not in table.sessions
    assert table.counters.freed == 1


async def test_it_is_told_when_there_are_more_sessions_or_fewer() -> None:
    facts = StageFacts(MODEL, Span(0, 8))
    table = HopTable(facts, ToyAccount(1 << 20), HopPolicy())
    one, told = StageHost(table, cast(Executor, Idle()), lambda *_: None), []
    one.on_sessions = lambda: told.append(len(table.sessions))
    one.on_frames("a", [opening()])
    one.on_frames("a", [Keep((SESSION,))])
    one.on_frames("a", [opening(epoch=2, fresh=False)])
    one.on_frames("a", [Close(SESSION, 2)])
    one.close()
    assert told == [1, 0]
