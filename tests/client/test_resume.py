"""The coordinator goes, the stream goes on: each token once, the whole as if undisturbed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from scripted_node import (
    DIGEST,
    PROMPT_IDS,
    SECRET,
    SESSION,
    ScriptedNode,
    Wire,
    serving,
    token,
    whole,
)

from swarmd.client import AsyncClient, ResumePolicy
from swarmd.client.resume import (
    another_node_may_do,
    candidates,
    dialable,
    resumable,
)
from swarmd.core.errors import (
    CapacityError,
    ConfigError,
    CoverageError,
    DeadlineExceeded,
    PeerUnreachable,
    RequestError,
    SessionLost,
    SwarmdError,
    UnknownModel,
)
from swarmd.core.route import EPOCHS_PER_ATTEMPT
from swarmd.v1 import inference_pb2 as pb
from swarmd.wire.status import abort

DEAD = "127.0.0.1:1"
PATIENCE_S = 20.0
EAGER = ResumePolicy(first_delay_s=0.01, max_delay_s=0.02, connect_timeout_s=5)


async def test_a_stream_that_breaks_goes_on_at_another_node() -> None:
    first, second = ScriptedNode(break_after=4), ScriptedNode()
    async with serving(first, second), AsyncClient([first.address, second.address]) as client:
        stream = client.generate("p", max_tokens=10, temperature=0.5)
        seen = [t async for t in stream]
    ids, text = whole(10)
    assert tuple(t.id for t in seen) == ids
    assert [t.index for t in seen] == list(range(10))
    assert (stream.result.text, stream.result.token_ids) == (text, ids)
    assert (stream.result.resumes, stream.result.coordinator.address) == (1, second.address)
    asked = second.requests[0]
    assert asked.WhichOneof("prompt") is None
    assert not asked.allow_redirect
    assert (first.requests[0].model, asked.model) == ("", DIGEST)
    assert (asked.sampling.seed, asked.sampling.temperature) == (4242, 0.5)
    assert 0 < asked.resume.waited_s < PATIENCE_S
    asked.resume.ClearField("waited_s")
    assert asked.resume == pb.ResumeFrom(
        session=SESSION, secret=SECRET, epoch=1 + EPOCHS_PER_ATTEMPT, prompt_ids=PROMPT_IDS,
        output_ids=ids[:4], text_chars=len(whole(4)[1]), chunk_size=256,
        route=[pb.Hop(peer_id="a" * 40, address=first.address, end=8, pid=11)],
        lost="a" * 40,
    )  # fmt: skip


async def test_a_node_is_told_how_long_its_client_has_waited_not_how_long_it_took_to_read() -> None:
    first, second = ScriptedNode(), ScriptedNode()
    goes = asyncio.Event()

    async def hesitates(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)
        await goes.wait()
        await asyncio.sleep(0.3)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    first.script = hesitates
    async with serving(first, second), AsyncClient([first.address, second.address]) as client:
        stream = client.generate("p", max_tokens=3)
        await anext(stream)
        await asyncio.sleep(0.5)  # the caller has other things to do
        goes.set()
        began = time.monotonic()
        assert (await anext(stream)).index == 1
        took = time.monotonic() - began
        await stream.aclose()
    assert 0.25 <= second.requests[0].resume.waited_s <= took


async def test_a_coordinator_that_said_why_it_ends_is_not_called_lost() -> None:
    first, second = ScriptedNode(), ScriptedNode()

    async def leaves(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)
        await abort(context, PeerUnreachable("this node is leaving: go on at another one"))

    first.script = leaves
    async with serving(first, second), AsyncClient([first.address, second.address]) as client:
        assert (await client.complete("p", max_tokens=3)).resumes == 1
    assert second.requests[0].resume.lost == ""


async def test_where_nobody_answered_it_was_the_client_that_could_not_be_heard() -> None:
    node = ScriptedNode()

    async def once_away(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        away = len(node.requests) < 3
        async for event in node.answer(request, context):
            if away and (request.HasField("resume") or event.HasField("finished")):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield event

    node.script = once_away
    async with serving(node), AsyncClient([node.address, DEAD], resume=EAGER) as client:
        await client.complete("p", max_tokens=3)
    assert [request.resume.lost for request in node.requests] == ["", "a" * 40, ""]


@pytest.mark.parametrize("fault", [Wire.cut, Wire.silence])
async def test_a_connection_that_is_cut_or_falls_silent_is_resumed(
    fault: Callable[[Wire], object],
) -> None:
    first, second = ScriptedNode(), ScriptedNode()
    reached = asyncio.Event()

    async def stuck(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        for index in range(3):
            yield token(index)
        reached.set()
        await asyncio.Event().wait()

    first.script = stuck
    async with (
        serving(first, second),
        Wire(first) as wire,
        AsyncClient([wire.address, second.address]) as client,
    ):
        stream = client.generate("p", max_tokens=8)
        seen = [await anext(stream) for _ in range(3)]
        await reached.wait()
        fault(wire)
        async with asyncio.timeout(PATIENCE_S):
            seen += [t async for t in stream]
    assert tuple(t.id for t in seen) == whole(8)[0]
    assert stream.result.text == whole(8)[1]
    assert stream.result.resumes == 1
    assert list(second.requests[0].resume.output_ids) == list(whole(3)[0])
    assert second.requests[0].resume.lost == "a" * 40


async def test_tokens_that_a_new_coordinator_repeats_are_seen_once() -> None:
    first, second = ScriptedNode(break_after=4), ScriptedNode()

    async def from_the_start(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        again = pb.GenerateRequest(max_tokens=request.max_tokens)
        again.resume.epoch = request.resume.epoch
        async for event in node.answer(again, context):
            yield event

    second.script = from_the_start
    async with serving(first, second), AsyncClient([first.address, second.address]) as client:
        stream = client.generate("p", max_tokens=6)
        assert tuple([t.id async for t in stream]) == whole(6)[0]
        assert stream.result.text == whole(6)[1]


async def test_the_last_token_is_not_lost_when_the_node_dies_right_after_it() -> None:
    first, second = ScriptedNode(), ScriptedNode()

    async def no_end(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        async for event in node.answer(request, context):
            if event.HasField("finished"):
                await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
            yield event

    first.script = no_end
    async with serving(first, second), AsyncClient([first.address, second.address]) as client:
        assert (await client.complete("p", max_tokens=5)).text == whole(5)[1]
        seen = [t.id async for t in client.generate("p", max_tokens=5)]
    assert tuple(seen) == whole(5)[0]
    asked = second.requests[0].resume
    assert tuple(asked.output_ids) == whole(4)[0]
    assert asked.text_chars == len(whole(4)[1])


async def test_a_stream_that_just_ends_is_a_break_too() -> None:
    first, second = ScriptedNode(), ScriptedNode()

    async def short(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)

    first.script = short
    async with serving(first, second), AsyncClient([first.address, second.address]) as client:
        assert (await client.complete("p", max_tokens=4)).token_ids == whole(4)[0]


async def test_a_hop_of_the_route_takes_over_when_only_the_dead_node_was_given() -> None:
    first, second = ScriptedNode(break_after=2), ScriptedNode()
    async with serving(first, second):
        first.route = [
            pb.Hop(peer_id="a" * 40, address=first.address, start=0, end=4, pid=1),
            pb.Hop(peer_id="b" * 40, address=second.address, start=4, end=8, pid=2),
        ]
        async with AsyncClient(first.address) as client:
            result = await client.complete("p", max_tokens=6)
    assert result.token_ids == whole(6)[0]
    assert result.coordinator.address == second.address
    assert len(first.requests) == 1


async def test_a_peer_known_from_status_alone_takes_over() -> None:
    first, second = ScriptedNode(), ScriptedNode()

    async def dies_when_asked(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)
        if len(node.requests) == 1:
            await node.status_asked.wait()
            yield token(1)
        await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    first.script = dies_when_asked
    async with serving(first, second):
        first.peers = [
            pb.PeerStatus(address=DEAD, state="gone"),
            pb.PeerStatus(address=second.address, state="serving"),
        ]
        async with AsyncClient(first.address) as client:
            stream = client.generate("p", max_tokens=6)
            await anext(stream)
            await asyncio.gather(*client._tasks)
            assert tuple([t.id async for t in stream]) == whole(6)[0][1:]
    assert client._reach.known == (second.address,)
    assert stream.coordinator is not None
    assert stream.coordinator.address == second.address


async def test_a_node_that_comes_back_is_waited_for() -> None:
    node = ScriptedNode()
    refusals = iter([PeerUnreachable("starting"), CapacityError("full", 0.1)])

    async def recovering(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        if not request.HasField("resume"):
            yield node.started(request)
            yield token(0)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        if (error := next(refusals, None)) is not None:
            await abort(context, error)
        async for event in node.answer(request, context):
            yield event

    node.script = recovering
    async with serving(node), AsyncClient(node.address, resume=EAGER) as client:
        result = await client.complete("p", max_tokens=4)
    assert result.token_ids == whole(4)[0]
    epochs = [request.resume.epoch for request in node.requests]
    assert epochs == [
        0,
        1 + EPOCHS_PER_ATTEMPT,
        1 + 2 * EPOCHS_PER_ATTEMPT,
        1 + 3 * EPOCHS_PER_ATTEMPT,
    ]


async def test_one_break_after_another_is_survived_and_repairs_add_up() -> None:
    nodes = [ScriptedNode(break_after=3) for _ in range(3)]

    async def repaired(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        async for event in node.answer(request, context):
            yield event
            if event.HasField("started"):
                hops = event.started.route
                changed = pb.RouteChanged(
                    epoch=event.started.epoch + 1, route=hops, repairs=2, recomputed_tokens=30
                )
                yield pb.GenerateEvent(route_changed=changed)

    for node in nodes:
        node.script = repaired
    nodes[2].break_after = None
    async with (
        serving(*nodes),
        AsyncClient([node.address for node in nodes], resume=EAGER) as client,
    ):
        stream = client.generate("p", max_tokens=12)
        ids = [t.id async for t in stream]
    assert tuple(ids) == whole(12)[0]
    assert stream.resumes >= 2
    assert stream.repairs == 2 * stream.resumes  # the last coordinator's own count was 0 at its end
    assert stream.result.recomputed_tokens == 30 * stream.resumes


async def test_what_was_computed_again_for_a_coordinator_that_is_lost_too_counts() -> None:
    first, second, third = ScriptedNode(break_after=3), ScriptedNode(break_after=3), ScriptedNode()

    async def resumed(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        async for event in node.answer(request, context):
            if event.HasField("started"):
                event.started.recomputed_tokens = 7
            if event.HasField("finished"):
                event.finished.recomputed_tokens = 9
            yield event

    second.script = third.script = resumed
    async with (
        serving(first, second, third),
        AsyncClient([node.address for node in (first, second, third)], resume=EAGER) as client,
    ):
        done = await client.complete("p", max_tokens=12)
    assert done.token_ids == whole(12)[0]
    assert done.resumes >= 2
    assert done.recomputed_tokens == 7 + 9


@pytest.mark.parametrize(
    "error",
    [
        SessionLost("unknown session"),
        CoverageError("blocks 4:8 are missing", [(4, 8)]),
        RequestError("no"),
        SwarmdError("odd"),
    ],
)
async def test_a_reason_given_in_mid_stream_is_final(error: SwarmdError) -> None:
    first, second = ScriptedNode(), ScriptedNode()

    async def refusing(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)
        await abort(context, error)

    first.script = refusing
    async with serving(first, second), AsyncClient([first.address, second.address]) as client:
        with pytest.raises(type(error)) as caught:
            await client.complete("p", max_tokens=4)
    assert str(caught.value) == str(error)
    assert second.requests == []


async def test_a_candidate_that_serves_another_model_is_passed_over() -> None:
    first, other, third = ScriptedNode(break_after=1), ScriptedNode(), ScriptedNode()
    other.fails_with = UnknownModel("toy is not served here")
    async with (
        serving(first, other, third),
        AsyncClient([first.address, other.address, third.address]) as client,
    ):
        assert (await client.complete("p", max_tokens=3)).token_ids == whole(3)[0]
    assert len(other.requests) == 1


async def test_a_node_that_begins_another_session_is_not_believed() -> None:
    first, second = ScriptedNode(break_after=1), ScriptedNode()

    async def other(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        event = node.started(request)
        event.started.session = bytes(16)
        yield event

    second.script = other
    async with serving(first, second), AsyncClient([first.address, second.address]) as client:
        with pytest.raises(SwarmdError, match="another one"):
            await client.complete("p", max_tokens=3)


async def test_resuming_can_be_turned_off() -> None:
    first, second = ScriptedNode(break_after=1), ScriptedNode()
    async with serving(first, second):
        nodes = [first.address, second.address]
        async with AsyncClient(nodes, resume=ResumePolicy(attempts=0)) as client:
            with pytest.raises(PeerUnreachable, match="the node died"):
                await client.complete("p", max_tokens=3)
    assert second.requests == []


async def test_it_gives_up_after_its_attempts_and_says_how_far_it_came() -> None:
    node = ScriptedNode(break_after=0)
    policy = ResumePolicy(attempts=3, first_delay_s=0.01, max_delay_s=0.01)
    async with serving(node), AsyncClient(node.address, resume=policy) as client:
        with pytest.raises(PeerUnreachable) as caught:
            await client.complete("p", max_tokens=3)
    assert len(node.requests) == 1 + 3
    assert caught.value.__notes__ == ["after 0 tokens, and 3 attempts to go on"]


async def test_the_timeout_of_the_call_bounds_resuming() -> None:
    node = ScriptedNode(break_after=0)
    policy = ResumePolicy(attempts=10**6, first_delay_s=0.05, max_delay_s=0.05)
    async with serving(node), AsyncClient(node.address, resume=policy) as client:
        with pytest.raises(DeadlineExceeded, match="0 tokens"):
            await client.complete("p", max_tokens=3, timeout=0.5)


# -- the policy as a value -------------------------------------------------------------------------


def test_waits_double_up_to_a_limit_and_half_of_each_is_jitter() -> None:
    policy = ResumePolicy(first_delay_s=0.1, max_delay_s=1.0)
    assert [policy.delay(n, 0.0) for n in (1, 2, 3)] == [0.05, 0.1, 0.2]
    assert policy.delay(1, 0.999) == pytest.approx(0.1, rel=1e-2)
    assert policy.delay(10_000, 0.0) == 0.5


def test_attempts_and_budget_both_bound_it() -> None:
    policy = ResumePolicy(attempts=3, budget_s=10)
    assert policy.allows(0, 0.0)
    assert policy.allows(2, 9.9)
    assert not policy.allows(3, 0.0)
    assert not policy.allows(1, 10.0)
    assert not ResumePolicy(attempts=0).allows(0, 0.0)


@pytest.mark.parametrize(
    "wrong", [{"attempts": -1}, {"budget_s": -1}, {"first_delay_s": 0}, {"max_delay_s": 0.01}]
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ResumePolicy(**wrong)


def test_candidates_given_first_then_route_then_known_the_lost_one_last() -> None:
    assert candidates(
        given=["l:1", "g:1"],
        route=["r:1", "g:1", "l:1"],
        known=["k:1", "unix:/x", "r:1", ""],
        lost="l:1",
    ) == ("g:1", "r:1", "k:1", "l:1")


def test_only_plain_addresses_are_dialled() -> None:
    assert dialable("h:1")
    assert dialable("[::1]:7420")
    for text in ("unix:/x", "unix:///x:1", "dns:///h:1", "h", "h:0", "h:x", " h:1", "h:99999", ""):
        assert not dialable(text), text


def test_what_may_be_tried_elsewhere() -> None:
    assert another_node_may_do(PeerUnreachable("x"))
    assert not another_node_may_do(CapacityError("x"))
    assert resumable(PeerUnreachable("x"))
    assert resumable(CapacityError("x"))
    assert not resumable(SessionLost("x"))
    assert not resumable(CoverageError("x"))
