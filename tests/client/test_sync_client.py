"""`Client` is `AsyncClient` without an event loop: the same surface, tokens and errors."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from scripted_node import ScriptedNode, reads, serving, token, whole

from swarmd.client import AsyncClient, Client, Generation, SyncGeneration, resume, sync_client
from swarmd.core.errors import NodeLoading, PeerUnreachable, RequestError, UsageError

T = TypeVar("T")


def public(cls: type) -> set[str]:
    names = {name for name in vars(cls) if not name.startswith("_")}
    return {"close" if name == "aclose" else name for name in names}


def test_both_clients_have_the_same_surface() -> None:
    assert public(Client) == public(AsyncClient)
    assert public(SyncGeneration) == public(Generation)
    for name in public(Client) - {"nodes"}:
        asked = inspect.signature(getattr(AsyncClient, name)).parameters
        assert list(inspect.signature(getattr(Client, name)).parameters) == list(asked), name
    both = (inspect.signature(cls.__init__).parameters for cls in (Client, AsyncClient))
    assert len({tuple(parameters.values()) for parameters in both}) == 1


@asynccontextmanager
async def in_a_thread(node: ScriptedNode) -> AsyncIterator[Callable[..., Any]]:
    """Serve in this loop, and run blocking code where there is none."""
    async with serving(node):
        yield asyncio.to_thread


async def test_all_calls_without_a_loop() -> None:
    node = ScriptedNode(break_after=2)

    def use() -> None:
        with Client(node.address) as client:
            stream = client.generate("p", max_tokens=5)
            assert (stream.route, stream.session, stream.text) == ((), "", "")
            seen = [t.id for t in stream]
            assert tuple(seen) == whole(5)[0]
            assert stream.result.text == stream.text == whole(5)[1]
            assert stream.resumes == 2
            assert stream.coordinator == stream.result.coordinator
            node.break_after = None
            assert client.complete([1], max_tokens=2).token_ids == whole(2)[0]
            assert client.chat([{"role": "user", "content": "x"}], max_tokens=1).token_ids == (100,)
            assert client.status().peer == "a" * 40
            assert client.tokenize("a") == [1, 97]
            assert client.detokenize([97]) == "a"
            assert client.drain(force=True) == 2
            assert client.nodes == (node.address,)

    async with in_a_thread(node) as run:
        await run(use)


def test_errors_are_typed_here_too() -> None:
    with Client("127.0.0.1:1") as client:
        with pytest.raises(PeerUnreachable):
            client.complete("p")
        with pytest.raises(RequestError):
            client.generate("p", max_tokens=0)
        with pytest.raises(UsageError, match="to the end"):
            _ = client.generate("p").result
    with pytest.raises(UsageError, match="closed"):
        client.complete("p")
    client.close()


async def endless(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
    yield node.started(request)
    yield token(0)
    await asyncio.Event().wait()


@pytest.mark.parametrize("way", ["close", "with", "drop", "close the client"])
async def test_leaving_early_cancels_the_call_at_the_node(way: str) -> None:
    node = ScriptedNode(script=endless)

    def use(client: Client) -> None:
        stream = client.generate("p")
        assert next(stream).id == 100
        if way == "close":
            stream.close()
        elif way == "with":
            with stream:
                pass
        elif way == "close the client":
            client.close()
        else:
            del stream
            gc.collect()

    async with in_a_thread(node) as run:
        client = Client(node.address)
        await run(use, client)
        await asyncio.wait_for(node.cancelled.wait(), 20)
        await run(client.close)


async def test_a_stream_that_another_thread_reads_can_be_closed() -> None:
    node = ScriptedNode(script=endless)
    async with in_a_thread(node) as run:
        client = Client(node.address)
        stream = client.generate("p")
        read = asyncio.ensure_future(run(list, stream))
        await reads(stream)
        await run(stream.close)
        assert len(await read) == 1
        await asyncio.wait_for(node.cancelled.wait(), 20)
        await run(client.close)


def test_a_client_that_is_dropped_leaves_no_thread_behind() -> None:
    before = set(threading.enumerate())
    client = Client("127.0.0.1:1")
    (thread,) = set(threading.enumerate()) - before
    del client
    gc.collect()
    thread.join(20)
    assert not thread.is_alive()


async def test_several_threads_may_share_a_client() -> None:
    node = ScriptedNode()
    async with in_a_thread(node) as run:
        client = Client(node.address)
        jobs = (run(client.complete, "p", max_tokens=n) for n in range(1, 9))
        results = await asyncio.gather(*jobs)
        await run(client.close)
    assert [r.token_ids for r in results] == [whole(n)[0] for n in range(1, 9)]


@pytest.mark.parametrize("scheduled", [False, True])
async def test_an_interrupt_on_the_way_into_the_loop_ends_the_call(
    scheduled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C may come at any instruction, before or after the call has been handed over."""
    node = ScriptedNode()

    def use() -> None:
        with Client(node.address) as client:
            loop = client._thread._loop
            hand_over = loop.call_soon_threadsafe

            def interrupted(*args: Any) -> None:
                monkeypatch.undo()
                if scheduled:
                    hand_over(*args)
                raise KeyboardInterrupt

            stream = client.generate("p", max_tokens=5)
            first = next(stream)
            monkeypatch.setattr(loop, "call_soon_threadsafe", interrupted)
            with pytest.raises(KeyboardInterrupt), stream:
                next(stream)
            assert first.id == whole(1)[0][0]
            assert client.complete("p", max_tokens=2).token_ids == whole(2)[0]

    async with in_a_thread(node) as run:
        await run(use)


# -- closing ---------------------------------------------------------------------------------------


def in_background(work: Callable[[], Any]) -> Future[Any]:
    """Run in a thread that does not hold up the end of the tests if it hangs."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


class Waits(logging.Handler):
    """Set when a client is about to wait for a node that loads."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.begun.set()


async def test_closing_ends_the_calls_that_wait_in_other_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resume, "LOADING_WAIT_S", (3600.0, 3600.0))
    node, waits = ScriptedNode(fails_with=NodeLoading("still loading", 1.0)), Waits()
    logger = logging.getLogger("swarmd.client")

    def use() -> None:
        client = Client(node.address)
        call = in_background(lambda: client.complete("p"))
        assert waits.begun.wait(20)
        client.close()
        with pytest.raises(UsageError, match="closed"):
            call.result(20)

    level = logger.level
    logger.addHandler(waits)
    logger.setLevel(logging.INFO)
    try:
        async with in_a_thread(node) as run:
            await run(use)
    finally:
        logger.removeHandler(waits)
        logger.setLevel(level)


async def test_closing_ends_the_calls_that_read_in_other_threads() -> None:
    asked = threading.Event()

    async def silent(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        asked.set()
        await asyncio.Event().wait()

    node = ScriptedNode(script=silent)

    def use() -> None:
        client = Client(node.address)
        calls = [in_background(lambda: client.complete("p")) for _ in range(3)]
        assert asked.wait(20)
        for closing in [in_background(client.close) for _ in range(4)]:
            closing.result(20)
        for call in calls:
            with pytest.raises(UsageError, match="closed"):
                call.result(20)

    async with in_a_thread(node) as run:
        await run(use)


def test_what_begins_while_a_client_ends_does_not_keep_it() -> None:
    client = Client("127.0.0.1:1")
    begun = threading.Event()
    late: list[asyncio.Task[Any]] = []

    async def ends_late() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            late.append(asyncio.create_task(asyncio.Event().wait()))

    call = in_background(lambda: client._thread.wait(ends_late()))
    assert begun.wait(20)
    client.close()
    with pytest.raises(UsageError, match="closed"):
        call.result(20)
    assert late[0].cancelled()


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_call_that_meets_the_end_of_the_client_says_so(
    interrupted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look whether it is closed and the way into the loop, or on that way."""
    client = Client("127.0.0.1:1")
    hand_over = client._thread._loop.call_soon_threadsafe

    def closed_first() -> Future[Any]:
        monkeypatch.undo()
        in_background(client.close).result(20)
        return Future()

    def closed_and_interrupted(*args: Any) -> None:
        monkeypatch.undo()
        hand_over(*args)
        client.close()
        raise KeyboardInterrupt

    if interrupted:
        monkeypatch.setattr(client._thread._loop, "call_soon_threadsafe", closed_and_interrupted)
    else:
        monkeypatch.setattr(sync_client, "Future", closed_first)
    call = in_background(client.status)
    with pytest.raises(KeyboardInterrupt if interrupted else UsageError):
        call.result(20)


def test_a_client_that_its_own_thread_drops_ends_too() -> None:
    """As the garbage collector may do, which runs in any thread."""
    held = [Client("127.0.0.1:1")]
    own = held[0]._thread
    own._loop.call_soon_threadsafe(held.clear)
    own._thread.join(20)
    assert not own._thread.is_alive()
    assert own._loop.is_closed()


async def test_a_client_lasts_as_long_as_what_it_generates() -> None:
    node = ScriptedNode()

    def use() -> None:
        stream = Client(node.address).generate("p", max_tokens=3)
        gc.collect()
        assert tuple(t.id for t in stream) == whole(3)[0]

    async with in_a_thread(node) as run:
        await run(use)
