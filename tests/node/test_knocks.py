"""Sessions learn together whether peers can be reached."""

from __future__ import annotations

import asyncio

from swarmd.node.knocks import Knocks


class Door:
    """Who is connected, who was dialled, and what was answered."""

    def __init__(self, *connected: str) -> None:
        self.connected = set(connected)
        self.dialled: list[str] = []
        self.knocks = Knocks("me", self.dialled.append, lambda: self.connected)
        self.answers: list[frozenset[str]] = []

    def ask(self, *peers: str, seconds: float = 60.0) -> None:
        self.knocks.ask(frozenset(peers), seconds, self.answers.append)


async def test_peers_with_a_link_and_the_node_itself_need_no_dial() -> None:
    door = Door("a")
    door.ask("a", "me")
    assert not door.answers, "never during the call"
    await asyncio.sleep(0)
    assert (door.answers, door.dialled) == ([frozenset()], [])


async def test_the_answer_comes_when_all_are_known_and_names_those_out_of_reach() -> None:
    door = Door("a")
    door.ask("a", "b", "c")
    assert door.dialled == ["b", "c"]
    door.connected.add("b")
    door.knocks.up("b")
    assert not door.answers
    door.knocks.lost("c")
    assert door.answers == [frozenset({"c"})]
    door.knocks.lost("b")
    assert len(door.answers) == 1


async def test_a_loss_does_not_count_while_another_link_lives() -> None:
    door = Door()
    door.ask("b")
    door.connected.add("b")
    door.knocks.lost("b")
    assert door.answers == [frozenset()]


async def test_who_is_silent_for_too_long_is_out_of_reach() -> None:
    answer: asyncio.Future[frozenset[str]] = asyncio.get_running_loop().create_future()
    Door().knocks.ask(frozenset({"b"}), 0.0, answer.set_result)
    assert await answer == {"b"}


async def test_for_some_peers_the_wait_is_shorter_than_for_the_others() -> None:
    door, answer = Door(), asyncio.get_running_loop().create_future()
    door.knocks.ask(frozenset({"b", "c"}), 60.0, answer.set_result, {"b": 0.0})
    asyncio.get_running_loop().call_later(0.001, door.knocks.up, "c")
    assert await answer == {"b"}


async def test_one_that_answers_in_its_short_time_is_there() -> None:
    door, answer = Door(), asyncio.get_running_loop().create_future()
    door.knocks.ask(frozenset({"b", "c"}), 0.0, answer.set_result, {"b": 60.0})
    door.knocks.up("b")
    assert await answer == {"c"}
