"""Sessions that stand still, as nobody holds some blocks, go on when somebody does: all of them,
exactly, at the price of one replay each."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarmd.core.errors import CoverageError
from swarmd.core.sampling import SamplingParams
from swarmd.pipeline.hop import HopPolicy
from swarmd.pipeline.hop_session import HopSession
from swarmd.simulation import Client, Swarm
from swarmd.toys import toy_model, toy_oracle

MODEL = toy_model(num_blocks=9)
SESSIONS, PROMPT, TOKENS, CHUNK = 5, 40, 40, 16
GAP_S = 12.0
"""Longer than hops keep sessions of which they hear nothing, shorter than sessions wait."""


def crowd(log_bytes: int) -> tuple[Swarm, list[Client]]:
    """Sessions over three spans that one node each holds, all in the midst of their output."""
    swarm = Swarm(MODEL, hop_policy=HopPolicy(replay_log_bytes=log_bytes, prefix_unit=0))
    swarm.add("boss")
    for peer, blocks in {"a": "0:3", "b": "3:6", "c": "6:9"}.items():
        swarm.add(peer, blocks)
    clients = []
    for number in range(1, SESSIONS + 1):
        # Prompts of different lengths, so that some logs are the longest.
        prompt = tuple(range(number, number + PROMPT + 16 * number))
        sampling = SamplingParams(temperature=1.0, seed=number, presence_penalty=0.3)
        clients.append(swarm.client(number, prompt, TOKENS, sampling, CHUNK))
        swarm.start(clients[-1], "boss")
    run_until(swarm, lambda: all(len(client.ids) >= TOKENS // 3 for client in clients))
    assert all(client.finished is None for client in clients)
    return swarm, clients


def sessions_of(swarm: Swarm) -> list[HopSession]:
    """As the first hop has them."""
    return list(swarm.nodes["a"].table.sessions.values())


def run_until(swarm: Swarm, condition: Callable[[], bool]) -> None:
    swarm.run(swarm.now + 600, lambda: not condition())
    assert condition()


def stand_still(swarm: Swarm, clients: list[Client]) -> int:
    """Lose the only holder of the blocks in the middle; return the positions held by then."""
    swarm.kill("b")
    swarm.run(swarm.now + GAP_S)
    assert all(client.finished is None for client in clients)
    return sum(len(client.request.prompt_ids) + len(client.ids) for client in clients)


def all_end_exactly(swarm: Swarm, clients: list[Client]) -> None:
    run_until(swarm, lambda: all(client.finished for client in clients))
    for client in clients:
        assert client.finished is not None
        assert client.finished.error is None
        request = client.request
        alone = toy_oracle(MODEL, request.prompt_ids, request.sampling, TOKENS, CHUNK)
        assert client.ids == alone
        assert client.repairs == 1
    nothing_is_left(swarm)


def nothing_is_left(swarm: Swarm) -> None:
    swarm.run(swarm.now + swarm.weather.notice[1])
    for node in swarm.nodes.values():
        assert not node.alive or not (node.table.sessions or node.account.reserved)


@pytest.mark.parametrize("joins", ["3:6", "0:9", "2:7"])
def test_from_whole_logs_only_the_newcomer_computes_anything_again(joins: str) -> None:
    swarm, clients = crowd(1 << 30)
    known = stand_still(swarm, clients)
    swarm.add("d", joins)
    swarm.announce("d")
    all_end_exactly(swarm, clients)
    for survivor in ("a", "c"):
        counters = swarm.nodes[survivor].table.counters
        assert counters.recomputed_positions <= SESSIONS, "the last token of each"
    replayed = swarm.nodes["a"].table.counters.replayed_positions
    assert known - SESSIONS <= replayed <= known


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_where_logs_were_cut_ids_are_replayed_and_all_is_computed_once_more(share: float) -> None:
    """`share` is the part of all that they hold for which logs have room."""
    whole, _ = crowd(1 << 30)
    swarm, clients = crowd(int(share * sum(s.log.nbytes for s in sessions_of(whole))))
    known = stand_still(swarm, clients)
    first = swarm.nodes["a"].table
    cut = sum(session.log.start > 0 for session in sessions_of(swarm))
    assert 0 < cut < SESSIONS if share > 0.9 else cut == SESSIONS
    before = first.counters.recomputed_positions
    swarm.add("d", "3:6")
    swarm.announce("d")
    all_end_exactly(swarm, clients)
    again = first.counters.recomputed_positions - before
    assert 0 < again <= known
    assert again + first.counters.replayed_positions <= known + SESSIONS * CHUNK


def test_several_that_come_at_once_share_them() -> None:
    swarm, clients = crowd(1 << 30)
    stand_still(swarm, clients)
    for name in ("d", "e", "f"):
        swarm.add(name, "3:6")
    swarm.announce("d")
    all_end_exactly(swarm, clients)
    assert len({client.route[1].peer_id for client in clients} & {"d", "e", "f"}) > 1


def test_a_newcomer_that_goes_again_is_one_more_repair_not_the_end() -> None:
    swarm, clients = crowd(1 << 30)
    stand_still(swarm, clients)
    swarm.add("d", "3:6")
    swarm.announce("d")
    run_until(swarm, lambda: all(len(client.ids) >= TOKENS // 2 for client in clients))
    swarm.kill("d")
    swarm.run(swarm.now + GAP_S)
    swarm.add("e", "3:6")
    swarm.announce("e")
    run_until(swarm, lambda: all(client.finished for client in clients))
    for client in clients:
        request = client.request
        assert client.ids == toy_oracle(MODEL, request.prompt_ids, request.sampling, TOKENS, CHUNK)


def test_without_anybody_all_end_in_time_and_leave_nothing() -> None:
    swarm, clients = crowd(1 << 30)
    began = swarm.now
    swarm.kill("b")
    run_until(swarm, lambda: all(client.finished for client in clients))
    assert swarm.now - began < swarm.driver_policy.gap_wait + 2
    for client in clients:
        assert client.finished is not None
        assert isinstance(client.finished.error, CoverageError)
        assert client.finished.error.missing == ((3, 6),)
    nothing_is_left(swarm)
