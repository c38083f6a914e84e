"""A node's coordinator with routes and links that the test holds in its hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from swarmd.core.errors import CoverageError, KVExhausted, QueueFull, RequestError, SessionLost
from swarmd.core.frames import Close, SessionFrame
from swarmd.core.prefix import PREFIX_UNIT
from swarmd.core.route import Hop, Route
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.node import coordinator as coordinating
from swarmd.node.coordinator import MAX_UNREAD, Coordinator, CoordinatorLimits
from swarmd.node.kept import Kept
from swarmd.node.knocks import Knocks
from swarmd.node.requests import Generation, Resumption
from swarmd.node.routes import Asked
from swarmd.node.run import Run
from swarmd.pipeline import events as ev
from swarmd.pipeline.causes import Cause
from swarmd.pipeline.driver_state import DriverState
from swarmd.pipeline.experience import Speed
from swarmd.pipeline.policy import DriverPolicy
from swarmd.toys import toy_model


class NoRoom:
    """Routes of a swarm whose KV is taken."""

    def __init__(self) -> None:
        self.asked = self.refreshed = 0

    def find(
        self, spans: Sequence[Span], exclude: frozenset[str], keep: Route, asked: Asked
    ) -> Route:
        self.asked += 1
        raise KVExhausted("all of it is taken")

    def ended(self, route: Route, positions: int) -> None:
        """Nobody holds anything here."""

    def suspected(self) -> frozenset[str]:
        return frozenset()

    def lagging(self, peer_id: str) -> None:
        raise AssertionError("nobody is slow")

    def worked(self, route: Route) -> None:
        raise AssertionError("nobody computes")

    def distrusted(self) -> frozenset[str]:
        return frozenset()

    def starving(self) -> frozenset[str]:
        return frozenset()

    def has_better(self, hop: Hop) -> bool:
        return True

    def speed(self, peer_id: str) -> Speed:
        return Speed()

    async def refresh(self) -> None:
        """There is nothing new."""
        self.refreshed += 1


def generation(number: int) -> Generation:
    return Generation(
        session=bytes([number]) * 16,
        secret=bytes(16),
        prompt_ids=(1, 2, 3),
        sampling=SamplingParams(),
        max_tokens=4,
        stop=(),
        stop_token_ids=frozenset(),
        include_stop=False,
        ids_only=True,
    )


def coordinator(routes: NoRoom, *connected: str, prefix_unit: int = PREFIX_UNIT) -> Coordinator:
    def send(peer_id: str, batch: Sequence[SessionFrame]) -> None:
        assert all(isinstance(frame, Close) for frame in batch), "nothing else is to be sent"

    def spawn(work: Coroutine[Any, Any, None]) -> object:
        return asyncio.get_running_loop().create_task(work)

    policy = DriverPolicy(admission_wait=0.2, gap_poll=0.01)
    limits = CoordinatorLimits(max_sessions=8, chunk_size=64, prefix_unit=prefix_unit)
    knocks = Knocks("me", lambda peer_id: None, tuple)
    return Coordinator("me", toy_model(), send, routes, knocks, policy, limits, spawn)


async def test_who_has_left_before_a_route_was_looked_for_does_not_stand_in_line() -> None:
    routes = NoRoom()
    one = coordinator(routes)
    with one.run(generation(1)):
        pass  # the client leaves at once: the search for a route comes after
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert routes.asked == 0
    assert len(one._line) == 0


async def test_who_waits_in_vain_is_told_so_and_leaves_the_line() -> None:
    one = coordinator(NoRoom())
    with one.run(generation(1)) as first, one.run(generation(2)) as second:
        ends = [[out async for out in run][-1] for run in (first, second)]
    assert all(isinstance(end, ev.Finished) for end in ends)
    assert all(isinstance(end.error, KVExhausted) for end in ends if isinstance(end, ev.Finished))
    assert len(one._line) == 0
    assert len(one) == 0


async def test_who_stands_in_line_is_counted_while_that_lasts() -> None:
    one = coordinator(NoRoom())
    with one.run(generation(1)) as first, one.run(generation(2)):
        assert one.waiting == 0
        for _ in range(5):
            await asyncio.sleep(0)
        assert one.waiting == 2
        one.stop(first, "cancelled")
        assert one.waiting == 1
    assert one.waiting == 0


COUNTS = ("attempts", "handoffs", "precision_changes", "repairs")


@pytest.mark.parametrize(
    ("cause", "counter"),
    [
        (Cause.LOST, "repairs_lost"),
        (Cause.SLOW, "repairs_slow"),
        (Cause.STALLED, "repairs_stalled"),
        (Cause.CAPACITY, "repairs_capacity"),
        (Cause.FAILED, "repairs_failed"),
    ],
)
async def test_what_happens_to_a_session_is_counted_at_once_and_once(
    cause: Cause, counter: str
) -> None:
    one = coordinator(NoRoom())

    def counted() -> dict[str, int]:
        names = (*COUNTS, *(f"repairs_{cause}" for cause in Cause), "recomputed_positions")
        return {name: number for name in names if (number := getattr(one.stats, name))}

    with one.run(generation(1)) as run, one.run(generation(2)):
        for name in COUNTS:
            setattr(run.driver, name, 1)
        run.driver.causes[cause] += 1
        run.driver.feed.recomputed = 40
        assert counted() == {}
        one.on_view_changed()
        once = {**dict.fromkeys(COUNTS, 1), counter: 1, "recomputed_positions": 40}
        assert counted() == once, "while it runs"
        one.on_view_changed()
        assert counted() == once
        run.driver.handoffs += 2
        one.on_view_changed()
        assert counted() == {**once, "handoffs": 3}
    assert counted() == {**once, "handoffs": 3}


async def test_each_wait_for_a_token_is_timed_and_that_for_the_first_one_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, loop = 1000.0, asyncio.get_running_loop()
    monkeypatch.setattr(loop, "time", lambda: now, raising=False)
    one = coordinator(NoRoom())
    said = replace(resumed(2).resume, output_ids=(5,), waited_s=3.0)  # type: ignore[type-var]
    none_yet = replace(said, session=bytes([3]) * 16, output_ids=(), waited_s=16.0)

    def sums() -> tuple[float, float]:
        return one.first_tokens.sum, one.gaps.sum

    with (
        one.run(generation(1)) as new,
        one.run(replace(resumed(2), resume=said)) as goes_on,
        one.run(replace(resumed(3), resume=none_yet)) as begins,
    ):
        now += 2.0
        one._carry_out(new, ev.Emit(3, 5, 0.0, ()))
        assert sums() == (2.0, 0.0)
        now += 4.0
        one._carry_out(new, ev.Emit(4, 5, 0.0, ()))
        assert sums() == (2.0, 4.0)
        now += 2.0
        one._carry_out(goes_on, ev.Emit(4, 5, 0.0, ()))
        assert sums() == (2.0, 4.0 + 3.0 + 8.0), "since the last token at another coordinator"
        one._carry_out(begins, ev.Emit(3, 5, 0.0, ()))
        assert sums() == (2.0 + 16.0 + 8.0, 15.0), "there was none before"
        monkeypatch.undo()
    assert one.first_tokens.cumulative()[-1][1] == one.gaps.cumulative()[-1][1] == 2


async def test_beyond_the_sessions_that_may_be_everybody_is_told_when_to_come_again() -> None:
    one = coordinator(NoRoom())
    with ExitStack() as inside:
        for number in range(7):
            inside.enter_context(one.run(generation(number)))
        with one.place():  # a prompt that is read yet counts as well
            for number in range(50, 250):
                with pytest.raises(QueueFull, match="8 sessions") as refused, one.place():
                    raise AssertionError("no place should be left")
                with pytest.raises(QueueFull), one.run(generation(number)):
                    raise AssertionError("no session should begin")
                assert refused.value.retry_after_s > 0
        with one.run(generation(7)):
            assert len(one) == 8
    assert len(one) == 0


async def test_a_client_that_reads_nothing_is_cut_off_by_name_and_its_session_ends() -> None:
    one = coordinator(NoRoom())
    with one.run(generation(1)) as run:
        for position in range(MAX_UNREAD + 10):
            one._carry_out(run, ev.Emit(position, 5, 0.0, ()))
        await asyncio.sleep(0)
        assert len(one) == 0, "it holds nothing any more"
        last = [output async for output in run][-1]
    assert isinstance(last, ev.Finished)
    assert isinstance(last.error, QueueFull)
    assert "resume" in str(last.error)


def resumed(number: int, secret: bytes = bytes(16)) -> Generation:
    session = bytes([number]) * 16
    resume = Resumption(session, secret, 4097, (), 0, 64, ())
    return replace(generation(number), secret=secret, resume=resume)


async def test_a_client_that_is_back_before_its_stream_is_missed_goes_on_here() -> None:
    one = coordinator(NoRoom())
    with one.run(generation(1)) as lost, one.run(resumed(1)) as found:
        ends = [output async for output in lost]
        assert isinstance(ends[-1], ev.Finished)
        assert isinstance(ends[-1].error, SessionLost)
        assert len(one) == 1
        one.stop(lost, "cancelled")  # the old call ends when this node notices; the new one stays
        assert found.driver.state is not DriverState.DONE
    assert len(one) == 0


async def test_the_directory_is_not_asked_for_a_holder_of_a_copy_that_no_stream_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    strict: list[bool] = []

    class Nobody(NoRoom):
        def find(
            self, spans: Sequence[Span], exclude: frozenset[str], keep: Route, asked: Asked
        ) -> Route:
            strict.append(asked.strict)
            raise CoverageError("nobody has them", ((0, 1),))

    for spare in (True, False):
        routes = Nobody()
        one = coordinator(routes)
        with one.run(generation(1)) as run:
            answer: asyncio.Future[ev.DriverEvent] = asyncio.get_running_loop().create_future()

            def listen(
                event: ev.DriverEvent, now: float, answer: asyncio.Future[ev.DriverEvent] = answer
            ) -> list[ev.DriverAction]:
                if not answer.done():
                    answer.set_result(event)
                return []

            monkeypatch.setattr(run.driver, "handle", listen)
            one._find_route(run, ev.NeedRoute(99, (Span(0, 1),), frozenset(), (), spare=spare))
            assert await answer == ev.RouteMissing(99, ((0, 1),))
            assert bool(routes.refreshed) is not spare
            assert strict.pop() is spare, "nor does one of another precision do"
            strict.clear()


async def test_a_coordinator_that_a_client_has_lost_is_dialled_for_a_moment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, float]] = []

    def ask(
        self: Knocks, peers: object, seconds: float, answer: object, hurried: dict[str, float]
    ) -> None:
        asked.append(hurried)

    monkeypatch.setattr(Knocks, "ask", ask)
    route = (Hop("gone", Span(0, toy_model().num_blocks)),)
    one = coordinator(NoRoom())
    for number, lost in ((1, "gone"), (2, "no hop"), (3, "")):
        said = resumed(number)
        assert said.resume is not None
        resume = replace(said.resume, lost=lost, route=route)
        with one.run(replace(said, resume=resume)) as run:
            assert run.driver.state is DriverState.REACHING
    patience = DriverPolicy().lost_patience
    assert asked == [{"gone": patience}, {}, {}]
    assert patience < DriverPolicy().open_timeout / 4


async def test_nobody_else_takes_a_session_over_that_runs() -> None:
    one = coordinator(NoRoom())
    with one.run(generation(1)) as run:
        for stranger in (generation(1), resumed(1, b"guess" * 3 + b"!")):
            with pytest.raises(RequestError, match="runs here already"), one.run(stranger):
                pass
        assert run.driver.state is not DriverState.DONE


async def test_what_one_session_finds_of_a_slow_peer_the_others_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Judges(NoRoom):
        slow = ""

        def lagging(self, peer_id: str) -> None:
            self.slow = peer_id

    routes = Judges()
    one = coordinator(routes)
    with one.run(generation(1)) as first, one.run(generation(2)) as second:
        told: list[ev.DriverEvent] = []
        finds: list[ev.DriverAction] = [ev.Lagging("b")]

        def find(event: ev.DriverEvent, now: float) -> list[ev.DriverAction]:
            return [finds.pop()] if finds else []

        def listen(event: ev.DriverEvent, now: float) -> list[ev.DriverAction]:
            told.append(event)
            return []

        monkeypatch.setattr(first.driver, "handle", find)
        monkeypatch.setattr(second.driver, "handle", listen)
        one.on_view_changed()
        await asyncio.sleep(0)
        assert routes.slow == "b"
        assert ev.PeerLags("b") in told


async def test_who_starves_is_no_copy_and_takes_no_place_of_another_one_that_does() -> None:
    one = coordinator(NoRoom())
    with one.run(generation(1)) as run:
        run.driver._search.route = (Hop("a", Span(0, 4)), Hop("b", Span(4, 8)))
        need = ev.NeedRoute(1, (Span(4, 8),), frozenset(), ())
        for starving, trusted, spare, unfit in [
            ({"b", "c"}, True, False, True),
            ({"c"}, True, False, False),  # a hop that hangs is worse than one that starves
            ({"a", "c"}, True, False, False),
            ({"c"}, False, True, True),
        ]:
            asked = replace(need, trusted=trusted, spare=spare)
            assert run.unfit(asked, frozenset(starving)) == (starving if unfit else set())


class Alternatives(NoRoom):
    """Routes that know others for some hops."""

    def has_better(self, hop: Hop) -> bool:
        return hop.peer_id in "bd"


async def test_sessions_go_round_hops_that_starve_so_many_at_once_each_in_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(coordinating, "EASED", 2)
    one, told = coordinator(Alternatives()), []
    routes = ["b", "c", "a", "ab", "b", "bd", "b"]
    with ExitStack() as stack:
        runs = [stack.enter_context(one.run(generation(n))) for n in range(1, len(routes) + 1)]
        for number, (run, names) in enumerate(zip(runs, routes, strict=True)):
            hops = tuple(Hop(name, Span(0, 8)) for name in names)
            monkeypatch.setattr(run.driver._search, "route", hops)
            monkeypatch.setattr(run.driver, "may_replace", lambda now, n=number: n != 4)

            def handle(event: ev.DriverEvent, now: float, number: int = number) -> list[Any]:
                told.append((number, event))
                return []

            monkeypatch.setattr(run.driver, "handle", handle)

        def asked() -> list[tuple[int, str]]:
            told.clear()
            one.go_round(["a", "b", "d"])
            assert all(event.starving == {*"abd"} for _, event in told)
            return [(number, event.peer_id) for number, event in told]

        assert asked() == [(0, "b"), (3, "b")], "not round c, which is well, or for a, the only one"
        assert asked() == [(5, "b"), (6, "b")], "number 4 may not now"
        assert asked() == []
        for run in runs:
            run.bears_until = min(run.bears_until, 1.0)
        assert asked() == [(0, "b"), (3, "b")]
        assert asked() == [(5, "d"), (6, "b")], "another hop than the last time"
        told.clear()


async def test_a_prompt_that_is_being_computed_is_waited_for_however_long_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[Callable[[], None]] = []

    def call_later(delay: float, look: Callable[..., None], *arguments: object) -> None:
        if delay == coordinating.TURN_S:
            looks.append(partial(look, *arguments))

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", call_later, raising=False)
    long = replace(generation(1), prompt_ids=tuple(range(1, 12)) * 30)
    one = coordinator(NoRoom(), prefix_unit=64)
    with one.run(long) as first, one.run(replace(long, session=b"2" * 16)) as second:
        first.admitted = True  # hops hold KV for it: they compute
        for _ in range(5):
            looks.pop()()
            assert second.driver.state is DriverState.NEW
        first.admitted = False
        looks.pop()()
        assert second.driver.state is not DriverState.NEW, "nobody computes it: no use to wait"
        assert not looks


class Found(NoRoom):
    """Routes of one hop, each where the test says."""

    def __init__(self, *peers: str) -> None:
        super().__init__()
        self._peers = list(peers)
        self.stayed: list[bool] = []
        self.held: list[dict[str, int]] = []

    def worked(self, route: Route) -> None:
        """As they should."""

    def find(
        self, spans: Sequence[Span], exclude: frozenset[str], keep: Route, asked: Asked
    ) -> Route:
        self.stayed.append(asked.stays)
        self.held.append(dict(asked.cached))
        return (Hop(self._peers.pop(0), Span(0, toy_model().num_blocks)),)


@pytest.mark.parametrize("claimed", [False, True])
async def test_while_one_computes_a_held_prompt_elsewhere_others_stay_with_its_holders(
    claimed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Knocks, "ask", lambda *arguments: None)
    routes = Found("holder", "other", "holder", "holder")
    one = coordinator(routes, prefix_unit=64)
    prompt = tuple(range(1, 12)) * 30
    with ExitStack() as inside:

        async def comes(number: int, request: Generation) -> None:
            inside.enter_context(one.run(replace(request, prompt_ids=prompt)))
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(routes.stayed) == number

        await comes(1, generation(1))
        (first,) = one._runs.values()
        one._book.learn(first.driver.request.prefix, ["holder"])
        one._prompt_done(first)
        # What a client claims of its prompt may not keep others from going where they like.
        await comes(2, resumed(2) if claimed else generation(2))
        await comes(3, generation(3))
    assert routes.stayed == [False, False, not claimed]


async def test_nobody_waits_for_the_prompt_of_a_session_whose_tokens_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Knocks, "ask", lambda *arguments: None)
    one = coordinator(Found("one", "two", "three"), prefix_unit=64)
    prompt, whole = tuple(range(1, 12)) * 30, Span(0, toy_model().num_blocks)

    async def begins(inside: ExitStack, number: int) -> Run:
        run = inside.enter_context(one.run(replace(generation(number), prompt_ids=prompt)))
        for _ in range(5):
            await asyncio.sleep(0)
        return run

    with ExitStack() as inside:
        first = await begins(inside, 1)
        one._carry_out(first, ev.Routed(first.driver.route, 1))
        one._carry_out(first, ev.Emit(len(prompt), 5, 0.0, ()))
        # The only hop leaves: it is gone once the session goes on elsewhere.
        one._find_route(first, ev.NeedRoute(99, (whole,), frozenset({"one"}), ()))
        one.on_peer_lost("one")
        second = await begins(inside, 2)
        assert second.driver.state is not DriverState.NEW


@pytest.mark.parametrize("says", ["nothing", "that it resumes", "what was kept elsewhere"])
async def test_what_a_client_claims_is_no_hint_where_its_prompt_is_held(
    says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Knocks, "ask", lambda *arguments: None)
    prompt = tuple(range(1, 12)) * 30
    told = Kept(bytes(16), bytes(16), prompt[:200], 200, chunk_size=64, told=True)
    first = {
        "nothing": generation(1),
        "that it resumes": resumed(1),
        "what was kept elsewhere": replace(generation(1), past=told),
    }[says]
    routes = Found("hop", "hop")
    one = coordinator(routes, prefix_unit=64)
    with one.run(replace(first, prompt_ids=prompt)) as run:
        for _ in range(5):
            await asyncio.sleep(0)
        # Its hops have computed what it said, whatever others say of the same prompt.
        one._carry_out(run, ev.Routed(run.driver.route, 1))
        one._carry_out(run, ev.Emit(len(prompt), 5, 0.0, ()))
        one._carry_out(run, ev.Finished("length"))
    with one.run(replace(generation(2), prompt_ids=prompt)):
        for _ in range(5):
            await asyncio.sleep(0)
    assert routes.held[-1] == ({"hop": len(prompt) // 64 * 64} if says == "nothing" else {})


async def test_who_goes_on_from_a_kept_session_is_cut_as_that_was() -> None:
    """It may have begun at a node whose chunks are of another length."""
    kept = Kept(bytes(16), bytes(16), (1, 2), prompt_tokens=1, chunk_size=6)
    one = coordinator(NoRoom())
    with one.run(replace(generation(1), past=kept)) as run:
        assert run.chunk_size == 6
    with one.run(generation(2)) as run:
        assert run.chunk_size == 64
