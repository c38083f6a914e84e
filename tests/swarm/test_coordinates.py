"""Coordinates come to predict round trips that they were not fed."""

from __future__ import annotations

import math
import random
from itertools import combinations
from statistics import median

import pytest

from swarmd.swarm.coordinates import Coordinate, is_coordinate, rtt_ms, update


def test_a_round_trip_is_the_way_in_the_plane_and_both_heights() -> None:
    assert rtt_ms((0.0, 0.0, 1.0), (3.0, 4.0, 2.0)) == 8.0
    assert rtt_ms((), ()) == 2.0


def test_coordinates_learn_the_network() -> None:
    draw = random.Random(7)
    cities = [(draw.uniform(0, 100), draw.uniform(0, 100), draw.uniform(0.5, 5)) for _ in range(20)]
    peers = [Coordinate() for _ in cities]
    for _ in range(4000):
        a, b = draw.sample(range(20), 2)
        measured = rtt_ms(cities[a], cities[b]) * draw.uniform(0.95, 1.05)
        peers[a] = update(
            peers[a], peers[b].announced, measured, peers[b].error, draw.uniform(0, 2 * math.pi)
        )
    errors = [
        abs(rtt_ms(peers[a].announced, peers[b].announced) / rtt_ms(cities[a], cities[b]) - 1)
        for a, b in combinations(range(20), 2)
    ]
    assert median(errors) < 0.1
    assert max(peer.error for peer in peers) < 0.3


@pytest.mark.parametrize("measured", [0.0, -1.0, math.nan, math.inf, 1e9])
def test_what_is_no_round_trip_changes_nothing(measured: float) -> None:
    own = Coordinate(1.0, 2.0, 3.0)
    assert update(own, (5.0, 5.0, 1.0), measured) == own


def test_a_peer_without_a_coordinate_changes_nothing() -> None:
    assert update(Coordinate(), (), 10.0) == Coordinate()


def test_two_peers_at_one_point_part() -> None:
    moved = update(Coordinate(), Coordinate().announced, 10.0, angle=math.pi / 2)
    assert moved.y > 0.1
    assert moved.x == pytest.approx(0.0, abs=1e-9)


def test_a_height_stays_positive() -> None:
    own = Coordinate(height=5.0)
    for _ in range(50):
        own = update(own, (0.0, 0.0, 0.01), 0.02)
    assert own.height > 0


@pytest.mark.parametrize("place", [(1e9, 0.0, 0.0), (0.0, -2e5, 0.0), (0.0, 0.0, -1.0), (1.0, 2.0)])
def test_a_place_that_no_peer_can_have_changes_nothing(place: tuple[float, ...]) -> None:
    own = Coordinate(1.0, 2.0, 3.0)
    assert update(own, place, 20.0) == own


def test_liars_drag_nobody_out_of_what_can_be_announced() -> None:
    own, before = Coordinate(), Coordinate()
    for _ in range(2000):
        own, before = update(own, (99_000.0, 99_000.0, 0.0), 0.05, angle=1.0), own
        assert rtt_ms(own.announced, before.announced) - own.height - before.height <= 200.0
    assert is_coordinate(own.announced)
