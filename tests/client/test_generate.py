"""A caller gets tokens, then a result; a request that cannot be met ends in one typed error."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from typing import Any, get_type_hints

import pytest
from scripted_node import DIGEST, ScriptedNode, finished, reads, redirect, serving, token, whole

from swarmd.cli.generate import stats_line
from swarmd.client import AsyncClient
from swarmd.client.generation import Generation
from swarmd.client.request import GenerateArguments, GenerateOptions
from swarmd.core.errors import (
    CapacityError,
    ConfigError,
    CoverageError,
    DeadlineExceeded,
    KVExhausted,
    PeerUnreachable,
    ProtocolError,
    RequestError,
    SwarmdError,
    UnknownModel,
    UsageError,
)
from swarmd.core.results import Coordinator, TokenOutput
from swarmd.v1 import inference_pb2 as pb

DEAD = "127.0.0.1:1"


async def test_tokens_come_one_by_one_and_then_the_whole() -> None:
    node = ScriptedNode()
    async with serving(node), AsyncClient(node.address) as client:
        stream = client.generate("Once", max_tokens=5, top_logprobs=1)
        seen = [t async for t in stream]
        ids, text = whole(5)
        assert tuple(t.id for t in seen) == ids
        assert "".join(t.text for t in seen) == text
        assert [t.index for t in seen] == [0, 1, 2, 3, 4]
        assert seen[0].logprob == seen[0].top[0].logprob == -0.5
        assert (seen[0].top[0].id, seen[0].top[0].text) == (seen[0].id, seen[0].text)
        result = stream.result
    assert (result.text, result.token_ids, result.finish_reason) == (text, ids, "length")
    assert (result.num_prompt_tokens, result.seed, result.model) == (3, 4242, "toy")
    assert (result.repairs, result.resumes) == (0, 0)
    assert result.coordinator == Coordinator("a" * 40, node.address, 11)
    assert result.session == bytes(range(16)).hex()
    assert result.ttft_s > 0
    assert result.tokens_per_s > 0
    assert result.as_dict()["route"] == [
        {"peer": "a" * 40, "address": node.address, "blocks": "0:8", "pid": 11}
    ]


async def test_every_argument_reaches_the_node() -> None:
    node = ScriptedNode()
    async with serving(node), AsyncClient(node.address) as client:
        await client.complete(
            "p", model="m", max_tokens=2, temperature=0.5, top_k=3, top_p=0.25, min_p=0.125,
            repetition_penalty=1.5, presence_penalty=0.75, frequency_penalty=-0.5,
            logit_bias={5: -2.0}, seed=0, stop=["a", "b"], stop_token_ids=[6], include_stop=True,
            ignore_eos=True, top_logprobs=4, ids_only=True, allow_redirect=False,
        )  # fmt: skip
        await client.complete("p", max_tokens=1, stop="x")
    full, bare = node.requests
    expected = pb.GenerateRequest(
        model="m", text="p", max_tokens=2, stop=["a", "b"], stop_token_ids=[6], include_stop=True,
        ignore_eos=True, ids_only=True,
    )  # fmt: skip
    expected.sampling.MergeFrom(
        type(expected.sampling)(
            temperature=0.5, top_k=3, top_p=0.25, min_p=0.125, repetition_penalty=1.5,
            presence_penalty=0.75, frequency_penalty=-0.5, seed=0, top_logprobs=4,
        )
    )  # fmt: skip
    expected.sampling.logit_bias.add(token_id=5, bias=-2.0)
    assert full == expected
    assert list(bare.stop) == ["x"]
    assert bare.allow_redirect
    assert not bare.sampling.HasField("seed")


def test_the_typed_arguments_are_the_options() -> None:
    options = {option.name for option in fields(GenerateOptions)}
    assert set(get_type_hints(GenerateArguments)) == options | {"timeout", "allow_redirect"}


async def test_the_three_kinds_of_prompt() -> None:
    node = ScriptedNode()
    async with serving(node), AsyncClient(node.address) as client:
        await client.complete([5, 6], max_tokens=1)
        await client.chat([{"role": "user", "content": "hi"}], max_tokens=1)
    ids, chat = node.requests
    assert list(ids.token_ids.ids) == [5, 6]
    assert [(m.role, m.content) for m in chat.chat.messages] == [("user", "hi")]


@pytest.mark.parametrize(
    "arguments",
    [
        {"prompt": []},
        {"prompt": [1, -1]},
        {"prompt": [1, "a"]},
        {"prompt": [True]},
        {"prompt": [{"role": "user"}]},
        {"prompt": [{"role": "user", "content": 3}]},
        {"prompt": None},
        {"max_tokens": 0},
        {"max_tokens": 1 << 32},
        {"temperature": -1},
        {"top_p": 0},
        {"seed": -1},
        {"stop": ["a"] * 17},
        {"stop": ""},
        {"stop": "x" * 257},
        {"stop_token_ids": [1 << 32]},
        {"stop_token_ids": [1] * 257},
        {"timeout": -1},
        {"tempreture": 1.0},
    ],
)
async def test_what_no_node_would_accept_is_refused_at_once(arguments: dict[str, Any]) -> None:
    async with AsyncClient(DEAD) as client:
        with pytest.raises(RequestError):
            client.generate(**({"prompt": "p"} | arguments))


async def test_a_misspelt_option_gets_a_hint() -> None:
    async with AsyncClient(DEAD) as client:
        with pytest.raises(RequestError, match="did you mean 'temperature'"):
            client.generate("p", tempreture=1.0)  # type: ignore[call-arg]


async def test_route_and_coordinator_are_live() -> None:
    node = ScriptedNode()
    other = pb.Hop(peer_id="c" * 40, address="127.0.0.1:9", start=0, end=8, pid=77)

    async def repaired(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)
        changed = pb.RouteChanged(epoch=2, route=[other], repairs=1, precision_changes=1)
        yield pb.GenerateEvent(route_changed=changed)
        yield token(1)
        yield finished(
            2,
            reason=pb.FINISH_REASON_STOP,
            repairs=1,
            recomputed_tokens=9,
            precision_changes=1,
            stop="x",
        )

    node.script = repaired
    async with serving(node), AsyncClient(node.address) as client:
        stream = client.generate("p")
        assert (stream.route, stream.coordinator, stream.session) == ((), None, "")
        await anext(stream)
        assert [hop.pid for hop in stream.route] == [11]
        assert stream.coordinator is not None
        await anext(stream)
        assert [hop.pid for hop in stream.route] == [77]
        assert stream.repairs == 1
        assert [t async for t in stream] == []
        result = stream.result
    assert (result.repairs, result.recomputed_tokens) == (1, 9)
    assert result.precision_changes == result.as_dict()["precision_changes"] == 1
    assert "1 repairs (1 to a peer of another precision: ids may differ)" in stats_line(result)
    assert "precision" not in stats_line(replace(result, precision_changes=0))
    assert (result.finish_reason, result.stop) == ("stop", "x")
    assert result.route == stream.route


async def test_text_held_back_until_the_end_is_not_lost() -> None:
    node = ScriptedNode()

    async def holding(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)
        reason = pb.FINISH_REASON_LENGTH if request.max_tokens == 1 else pb.FINISH_REASON_STOP
        yield finished(1, reason=reason, text="tail")

    node.script = holding
    async with serving(node), AsyncClient(node.address) as client:
        last = [t async for t in client.generate("p", max_tokens=1)]
        stopped = [t async for t in client.generate("p", max_tokens=2)]
        result = await client.complete("p", max_tokens=2)
    assert [(t.id, t.text) for t in last] == [(100, "w0 tail")]
    assert [(t.id, t.text) for t in stopped] == [(100, "w0 "), (-1, "tail")]
    assert result.text == "w0 tail"
    assert result.token_ids == (100,)


async def test_the_result_is_asked_for_too_early() -> None:
    node = ScriptedNode()
    async with serving(node), AsyncClient(node.address) as client:
        stream = client.generate("p", max_tokens=3)
        with pytest.raises(UsageError, match="to the end"):
            _ = stream.result
        await anext(stream)
        with pytest.raises(UsageError, match="to the end"):
            _ = stream.result
        await stream.aclose()


# -- which node ------------------------------------------------------------------------------------


async def test_a_node_that_is_not_there_is_passed_over_and_asked_last_from_then_on() -> None:
    node = ScriptedNode()
    async with serving(node), AsyncClient([DEAD, node.address]) as client:
        assert (await client.complete("p", max_tokens=2)).token_ids == whole(2)[0]
        assert (await client.status()).peer == "a" * 40
        assert client._nodes.order(client.nodes) == [node.address, DEAD]


async def test_no_node_at_all_names_the_addresses() -> None:
    async with AsyncClient(DEAD) as client:
        with pytest.raises(PeerUnreachable, match=r"127\.0\.0\.1:1.*swarmd serve"):
            await client.complete("p")
        with pytest.raises(PeerUnreachable, match=r"127\.0\.0\.1:1"):
            await client.status()
    async with AsyncClient(f"{DEAD},127.0.0.1:2") as client:
        with pytest.raises(PeerUnreachable, match=r"none of 2 nodes.*:1.*:2"):
            await client.complete("p")
        with pytest.raises(PeerUnreachable, match=r"none of 2 nodes.*:1.*:2"):
            await client.status()


async def test_a_host_that_swallows_packets_costs_the_connect_timeout_only() -> None:
    accepted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda r, w: accepted.append(w), "127.0.0.1", 0)
    address = f"127.0.0.1:{silent.sockets[0].getsockname()[1]}"
    node = ScriptedNode()
    async with serving(node), AsyncClient([address, node.address], connect_timeout=1.0) as client:
        assert (await client.complete("p", max_tokens=1)).token_ids == (100,)
    silent.close()
    for writer in accepted:
        writer.transport.abort()


async def test_a_node_that_dies_before_it_begins_is_passed_over() -> None:
    first, second = ScriptedNode(fails_with=PeerUnreachable("draining")), ScriptedNode()
    async with serving(first, second), AsyncClient([first.address, second.address]) as client:
        assert (await client.complete("p", max_tokens=2)).token_ids == whole(2)[0]
        assert len(first.requests) == 1
        assert (await client.status()).peer == "a" * 40


@pytest.mark.parametrize(
    "error",
    [
        UnknownModel("no such model"),
        KVExhausted("full", 3.0),
        CoverageError("missing 4:8", [(4, 8)]),
        RequestError("no"),
        SwarmdError("odd"),
    ],
)
async def test_a_refusal_with_a_reason_is_final_and_typed(error: SwarmdError) -> None:
    first, second = ScriptedNode(fails_with=error), ScriptedNode()
    async with serving(first, second), AsyncClient([first.address, second.address]) as client:
        with pytest.raises(type(error)) as caught:
            await client.complete("p")
        with pytest.raises(type(error)):
            await client.status()
    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)
    assert second.requests == []


async def test_a_redirect_is_followed_once() -> None:
    first, second = ScriptedNode(), ScriptedNode()

    async def elsewhere(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield redirect(second.address)

    first.script = elsewhere
    async with serving(first, second), AsyncClient(first.address) as client:
        result = await client.complete("p", max_tokens=3)
        assert result.coordinator.address == second.address
        assert result.token_ids == whole(3)[0]
        assert first.requests[0].allow_redirect
        assert not second.requests[0].allow_redirect
        # Names may stand for other weights elsewhere.
        assert (first.requests[0].model, second.requests[0].model) == ("", DIGEST)
        second.script = elsewhere
        with pytest.raises(ProtocolError, match="redirect"):
            await client.complete("p", max_tokens=3)


async def test_a_redirect_into_the_void_leads_back() -> None:
    node = ScriptedNode()

    async def void(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        if request.allow_redirect:
            yield redirect(DEAD)
        else:
            async for event in node.answer(request, context):
                yield event

    node.script = void
    async with serving(node), AsyncClient(node.address) as client:
        assert (await client.complete("p", max_tokens=2)).token_ids == whole(2)[0]


@pytest.mark.parametrize("target", ["unix:///etc/x", "dns://evil/a:1", "x", "a:0", ""])
async def test_a_redirect_to_what_is_no_address_is_refused(target: str) -> None:
    node = ScriptedNode()

    async def odd(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield redirect(target)

    node.script = odd
    async with serving(node), AsyncClient(node.address) as client:
        with pytest.raises(ProtocolError, match="cannot follow"):
            await client.complete("p")


async def test_a_redirect_that_was_not_allowed_is_not_followed() -> None:
    first, second = ScriptedNode(), ScriptedNode()

    async def elsewhere(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield redirect(second.address)

    first.script = elsewhere
    async with serving(first, second), AsyncClient(first.address) as client:
        with pytest.raises(ProtocolError, match="cannot follow"):
            await client.complete("p", allow_redirect=False)
    assert second.requests == []


# -- a node that misbehaves ------------------------------------------------------------------------


def started_with(**fields: Any) -> Any:
    async def script(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        event = node.started(request)
        event.started.MergeFrom(pb.Started(**fields))
        yield event
        yield token(0)

    return script


def events(*sent: pb.GenerateEvent) -> Any:
    async def script(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        for event in sent:
            yield event

    return script


async def unstarted(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
    yield token(0)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (unstarted, "answered with token first"),
        (started_with(session=b"short"), "proper id"),
        (started_with(secret=b"x" * 15), "proper id"),
        (started_with(route=[pb.Hop(start=5, end=5)]), "route that is none"),
        (events(token(1)), "token 1 came after 0"),
        (events(redirect("127.0.0.1:5")), "in the middle"),
        (events(token(0), finished(1, reason=pb.FINISH_REASON_UNSPECIFIED)), "unknown reason"),
    ],
)
async def test_a_node_that_breaks_the_protocol_is_named_so(script: Any, said: str) -> None:
    node = ScriptedNode(script=script)
    async with serving(node), AsyncClient(node.address) as client:
        with pytest.raises(ProtocolError, match=said):
            await client.complete("p", max_tokens=9)


async def test_an_event_of_a_newer_node_is_passed_over() -> None:
    node = ScriptedNode(script=events(token(0), pb.GenerateEvent(), finished(1)))
    async with serving(node), AsyncClient(node.address) as client:
        assert (await client.complete("p")).token_ids == (100,)


# -- endings ---------------------------------------------------------------------------------------


def endless() -> Any:
    async def script(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)
        await asyncio.Event().wait()

    return script


async def test_the_timeout_ends_a_generation_at_the_node_too() -> None:
    node = ScriptedNode(script=endless())
    async with serving(node), AsyncClient(node.address) as client:
        await client.status()  # so that the time is not spent on the way there
        with pytest.raises(DeadlineExceeded):
            await client.complete("p", timeout=1.0)
        await asyncio.wait_for(node.cancelled.wait(), 20)


async def test_a_deadline_of_the_nodes_is_not_taken_for_the_clients_own() -> None:
    node = ScriptedNode(fails_with=DeadlineExceeded("no token for position 64 in time"))
    async with serving(node), AsyncClient(node.address, timeout=60.0) as client:
        with pytest.raises(DeadlineExceeded, match="position 64"):
            await client.complete("p")


async def test_the_timeout_of_the_client_counts_where_the_call_has_none() -> None:
    node = ScriptedNode(script=endless())
    async with serving(node), AsyncClient(node.address, timeout=0.3) as client:
        with pytest.raises(DeadlineExceeded):
            await client.complete("p")


@pytest.mark.parametrize("way", ["aclose", "with", "drop", "cancel", "close the client"])
async def test_leaving_early_cancels_the_call_at_the_node(way: str) -> None:
    node = ScriptedNode(script=endless())
    async with serving(node), AsyncClient(node.address) as client:
        stream = client.generate("p")
        await anext(stream)
        if way == "aclose":
            await stream.aclose()
        elif way == "with":
            async with stream:
                pass
        elif way == "drop":
            del stream
            gc.collect()
        else:
            waiting = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            if way == "cancel":
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
            else:
                await client.close()
                with pytest.raises(UsageError, match="closed"):
                    await waiting
        await asyncio.wait_for(node.cancelled.wait(), 20)


async def test_a_stream_that_another_task_reads_can_be_closed() -> None:
    node = ScriptedNode(script=endless())
    async with serving(node), AsyncClient(node.address) as client:
        stream = client.generate("p")
        read = asyncio.ensure_future(_all_of(stream))
        await reads(stream)
        await asyncio.gather(stream.aclose(), stream.aclose())
        assert len(await asyncio.wait_for(read, 20)) >= 1
        assert not read.cancelling()
        await asyncio.wait_for(node.cancelled.wait(), 20)
        assert await _all_of(stream) == []
        with pytest.raises(UsageError, match="end"):
            _ = stream.result


async def test_a_reader_that_is_cancelled_as_its_stream_is_closed_is_cancelled() -> None:
    node = ScriptedNode(script=endless())
    async with serving(node), AsyncClient(node.address) as client:
        stream = client.generate("p")
        read = asyncio.ensure_future(_all_of(stream))
        await reads(stream)
        closed = asyncio.ensure_future(stream.aclose())
        await asyncio.sleep(0)
        read.cancel()
        await closed
        with pytest.raises(asyncio.CancelledError):
            await read


async def test_two_readers_of_one_stream_are_one_too_many() -> None:
    node = ScriptedNode(script=endless())
    async with serving(node), AsyncClient(node.address) as client:
        stream = client.generate("p")
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="one can only"):
            await anext(stream)
        await stream.aclose()
        with pytest.raises(StopAsyncIteration):
            await waiting


async def _all_of(stream: Generation) -> list[TokenOutput]:
    return [token async for token in stream]


async def test_a_closed_client_says_so() -> None:
    client = AsyncClient(DEAD)
    await client.close()
    with pytest.raises(UsageError, match="closed"):
        await client.complete("p")


@pytest.mark.parametrize("nodes", ["", [], ",", "a:b", "x:0", "http://h:1"])
def test_a_node_that_is_no_address_is_refused(nodes: Any) -> None:
    with pytest.raises(ConfigError, match=r"HOST:PORT|port"):
        AsyncClient(nodes)


# -- the other calls -------------------------------------------------------------------------------


async def test_status_tokenize_detokenize_drain() -> None:
    node = ScriptedNode()
    loading = pb.PeerStatus(peer_id="c" * 40, address="x:1\x1b[0m", state="loading")
    serves = pb.PeerStatus(peer_id="a" * 40, address="y:2", start=0, end=4, state="serving", pid=5)
    node.peers = [loading, serves]
    async with serving(node), AsyncClient(node.address) as client:
        status = await client.status()
        assert await client.tokenize("ab") == [1, 97, 98]
        assert await client.tokenize("ab", add_special_tokens=False) == [97, 98]
        assert await client.tokenize([{"role": "u", "content": "v"}]) == [1, 117, 118]
        assert await client.detokenize([97, 98]) == "ab"
        assert await client.drain() == 2
        assert await client.drain(force=True) == 2
    assert node.drained == [False, True]
    assert status.peers[0].blocks is None
    assert "\x1b" not in status.peers[0].address
    assert status.as_dict()["peers"][1]["blocks"] == "0:4"
    assert status.as_dict()["models"][0]["missing"] == ["4:8"]
    assert status.counters == {"tokens": 3.0}


async def test_drain_is_for_one_node() -> None:
    async with AsyncClient([DEAD, "127.0.0.1:2"]) as client:
        with pytest.raises(RequestError, match="one node"):
            await client.drain()


async def test_status_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    node = ScriptedNode()

    async def never(request: Any, context: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(node, "Status", never)
    async with serving(node), AsyncClient(node.address) as client:
        await client.tokenize("a")  # so that the time is not spent on the way there
        with pytest.raises(DeadlineExceeded):
            await client.status(timeout=0.2)


async def test_capacity_says_when_to_come_back() -> None:
    node = ScriptedNode(fails_with=CapacityError("3 of 3 sessions", 2.5))
    async with serving(node), AsyncClient(node.address) as client:
        with pytest.raises(CapacityError) as caught:
            await client.complete("p")
    assert caught.value.retry_after_s == 2.5
