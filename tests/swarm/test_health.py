"""Penalties add up, fade, and are forgotten."""

from __future__ import annotations

import pytest

from swarmd.swarm.health import HALF_LIFE_S, MAX_PEERS, MAX_PENALTY, Fault, Health


def test_a_penalty_fades() -> None:
    health = Health()
    health.report("a", Fault.FAILED, 100.0)
    assert health.penalty("a", 100.0) == 2.0
    assert health.penalty("a", 100.0 + HALF_LIFE_S) == pytest.approx(1.0)
    assert health.penalty("b", 100.0) == 0.0


def test_penalties_add_up_to_a_limit() -> None:
    health = Health()
    for _ in range(100):
        health.report("a", Fault.DISAGREED, 0.0)
    assert health.penalty("a", 0.0) == MAX_PENALTY


def test_every_fault_costs_and_a_wrong_answer_costs_most() -> None:
    penalties = {}
    for fault in Fault:
        health = Health()
        health.report("a", fault, 0.0)
        penalties[fault] = health.penalty("a", 0.0)
    assert len(penalties) == 4
    assert min(penalties.values()) > 0
    assert max(penalties, key=penalties.__getitem__) is Fault.DISAGREED


def test_success_restores_trust_sooner() -> None:
    health = Health()
    health.report("a", Fault.FAILED, 0.0)
    health.succeeded("a", 0.0)
    health.succeeded("unknown", 0.0)
    assert health.penalty("a", 0.0) == 1.0
    assert len(health) == 1


def test_faded_penalties_are_forgotten() -> None:
    health = Health()
    health.report("a", Fault.LAGGED, 0.0)
    health.report("b", Fault.DISAGREED, 0.0)
    health.forget(10 * HALF_LIFE_S)
    assert len(health) == 1
    assert health.penalty("b", 10 * HALF_LIFE_S) > 0


def test_a_clock_that_goes_back_makes_no_penalty_grow() -> None:
    health = Health()
    health.report("a", Fault.FAILED, 100.0)
    assert health.penalty("a", 0.0) == 2.0


def test_what_a_process_did_is_forgiven_when_it_is_started_anew() -> None:
    health = Health()
    for fault in (Fault.FAILED, Fault.TIMED_OUT, Fault.LAGGED):
        health.report("a", fault, 0.0)
    health.restarted("a", 0.0)
    health.restarted("unknown", 0.0)
    assert health.penalty("a", 0.0) == Fault.LAGGED.value
    health.succeeded("a", 0.0)
    assert health.penalty("a", 0.0) == Fault.LAGGED.value


def test_strangers_that_fail_take_no_more_room_than_there_is() -> None:
    health = Health()
    health.report("worst", Fault.DISAGREED, 0.0)
    for number in range(2 * MAX_PEERS):
        health.report(f"{number}", Fault.FAILED, number / 1000)
    assert len(health) == MAX_PEERS
    assert "worst" in health
    assert f"{2 * MAX_PEERS - 1}" in health
