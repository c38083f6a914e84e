"""A node that is loading its model is waited for: by new requests, by resumed ones, in time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_node import ScriptedNode, serving, token, whole

from swarmd.client import AsyncClient, ResumePolicy, asking
from swarmd.client.asking import ask_each
from swarmd.client.resume import LOADING_WAIT_S, loading_wait
from swarmd.core.errors import (
    CapacityError,
    DeadlineExceeded,
    NodeLoading,
    PeerUnreachable,
    SwarmdError,
)
from swarmd.wire.status import abort

DEAD = "127.0.0.1:1"
HINT_S = 0.05


class LoadingNode(ScriptedNode):
    """Loads until it has been asked `refusals` times, then serves."""

    def __init__(self, refusals: int) -> None:
        super().__init__(script=LoadingNode._load)
        self.refusals = refusals

    @staticmethod
    async def _load(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        assert isinstance(node, LoadingNode)
        await node.refuse(context)
        async for event in node.answer(request, context):
            yield event

    async def refuse(self, context: Any) -> None:
        if self.refusals > 0:
            self.refusals -= 1
            await abort(context, NodeLoading("still loading (weights: 45 %)", HINT_S))

    async def Tokenize(self, request: Any, context: Any) -> Any:
        await self.refuse(context)
        return await super().Tokenize(request, context)


async def test_the_only_node_that_a_client_knows_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = LoadingNode(3)
    async with serving(node), AsyncClient(node.address) as client:
        with caplog.at_level(logging.INFO, "swarmd.client"):
            assert (await client.complete("p", max_tokens=4)).token_ids == whole(4)[0]
        node.refusals = 2
        assert await client.tokenize("a") == [1, 97]
    assert len(node.requests) == 4
    assert caplog.text.count("weights: 45 %") == 1


async def test_who_serves_already_is_not_kept_waiting_by_who_loads() -> None:
    loading, ready = LoadingNode(1_000_000), ScriptedNode()
    async with serving(loading, ready), AsyncClient([loading.address, ready.address]) as client:
        assert (await client.complete("p", max_tokens=2)).token_ids == whole(2)[0]
    assert len(loading.requests) == 1


async def test_the_refusal_itself_is_the_error_when_time_is_up() -> None:
    node = LoadingNode(1_000_000)
    async with serving(node), AsyncClient(node.address) as client:
        await client.status()  # so that the time is not spent on the way there
        began = time.monotonic()
        with pytest.raises(NodeLoading, match="45 %") as caught:
            await client.complete("p", timeout=1.0)
        assert time.monotonic() - began < 20
    assert caught.value.retry_after_s == HINT_S
    assert "were waited" in caught.value.__notes__[0]
    assert len(node.requests) > 1


class Answers:
    """What each of `nodes` says in turn, and how long it takes; nobody waits but by this clock."""

    def __init__(self, *said: tuple[float, SwarmdError]) -> None:
        self.said = iter(said)
        self.now = 0.0

    async def ask(self, address: str) -> None:
        took, error = next(self.said)
        self.now += took
        raise error

    async def pause(self, seconds: float) -> None:
        self.now += seconds

    async def until(self, timeout: float, *nodes: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(asking, "time", SimpleNamespace(monotonic=lambda: self.now))
            await ask_each(lambda: nodes, self.ask, timeout, self.pause)


LOADS = NodeLoading("still loading (weights: 45 %)", 10.0)
LATE = DeadlineExceeded("0 tokens came within the timeout")


async def test_a_last_question_without_an_answer_does_not_hide_the_refusal_before() -> None:
    with pytest.raises(NodeLoading, match="45 %") as caught:
        await Answers((0.2, LOADS), (0.5, LATE)).until(1.1, "a")  # 0.9 s are left, half is waited
    assert caught.value.__cause__ is LATE
    assert caught.value.__notes__ == ["1.15 s were waited for it"]
    gone = PeerUnreachable("gone")
    with pytest.raises(PeerUnreachable, match=r"none of 2 nodes.*45 %.*gone"):
        await Answers((0.2, LOADS), (0.0, gone), (0.0, LOADS), (0.5, LATE)).until(1.1, "a", "b")


async def test_a_node_that_says_nothing_in_a_long_time_is_not_said_to_be_loading() -> None:
    with pytest.raises(DeadlineExceeded):
        await Answers((0.2, LOADS), (30.0, LATE)).until(60.0, "a")
    with pytest.raises(DeadlineExceeded):
        await Answers((0.5, LATE)).until(0.5, "a")


async def test_a_node_that_dies_while_it_loads_is_not_waited_for() -> None:
    node, other = LoadingNode(1), ScriptedNode(fails_with=PeerUnreachable("draining"))
    node.script = ScriptedNode.answer
    async with serving(node, other), AsyncClient([DEAD, node.address]) as client:
        asked = asyncio.Event()

        async def loads_then_dies(node: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            node.script = gone
            asked.set()
            await node.refuse(context)
            yield

        async def gone(node: Any, request: Any, context: Any) -> AsyncIterator[Any]:
            await abort(context, PeerUnreachable("gone"))
            yield

        node.script = loads_then_dies
        with pytest.raises(PeerUnreachable, match=r"none of 2 nodes.*gone"):
            await client.complete("p")
        assert asked.is_set()
    assert len(node.requests) == 2


async def test_a_resumption_waits_for_a_node_that_loads_beyond_its_budget() -> None:
    node = LoadingNode(0)

    async def restarted(node: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        if not request.HasField("resume"):
            node.refusals = 5
            yield node.started(request)
            yield token(0)
            await abort(context, PeerUnreachable("killed"))
        await node.refuse(context)
        async for event in node.answer(request, context):
            yield event

    node.script = restarted
    impatient = ResumePolicy(attempts=2, budget_s=0.01, first_delay_s=0.01, max_delay_s=0.02)
    async with serving(node), AsyncClient(node.address, resume=impatient) as client:
        result = await client.complete("p", max_tokens=4)
    assert (result.token_ids, result.resumes) == (whole(4)[0], 1)
    assert len(node.requests) == 7


def test_the_soonest_of_those_who_load_says_when_and_nobody_is_believed_without_limit() -> None:
    dead, full = PeerUnreachable("dead"), CapacityError("full", 1.0)
    assert loading_wait([], 0.0) is loading_wait([dead, full], 0.0) is None
    assert loading_wait([dead, NodeLoading("", 3.0), NodeLoading("", 2.0)], 0.0) == 2.0
    assert loading_wait([NodeLoading("", 2.0)], 1.0) == 2.4
    least, most = LOADING_WAIT_S
    assert loading_wait([NodeLoading("", 0.0)], 0.0) == least
    assert loading_wait([NodeLoading("", 3600.0)], 0.0) == most
