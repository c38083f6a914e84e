"""Routes among thousands of simulated peers: what one takes, and what it costs against the best.

The swarms are those of tests/swarm: one to twenty cities, machines that differ up to twentyfold,
spans of several lengths, some peers that failed. The witness searches among all peers. The tool is
`swarmd bench routing`: it runs this, and prints, draws and keeps what comes out.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import TypeVar

from swarmd.core.errors import CoverageError
from swarmd.core.route import Route
from swarmd.core.span import Span
from swarmd.swarm.health import Health
from swarmd.swarm.paths import Offer, cheapest_route, path_cost
from swarmd.swarm.route_index import RouteIndex
from swarmd.swarm.router import choose_route
from swarmd.swarm.sweep import Effort, swept_path
from swarmd.swarm.terms import RouteRequest, Terms, price
from swarmd.swarm.view import View

ROOT = Path(__file__).parent.parent
T = TypeVar("T")
Row = dict[str, float]
REPEATS = 5
MODELS = (32, 80)
"""Blocks of the models that are served."""


class Samples:
    """Times in milliseconds, ratios, efforts; by name."""

    def __init__(self) -> None:
        self._samples: dict[str, list[float]] = {}

    def note(self, name: str, value: float) -> None:
        self._samples.setdefault(name, []).append(value)

    def timed(self, name: str, work: Callable[[], T]) -> T:
        """Do the work and note the milliseconds that it takes."""
        start = time.perf_counter()
        result = work()
        self.note(name, (time.perf_counter() - start) * 1e3)
        return result

    def row(self, peers: int) -> Row:
        """Return medians, and the 95th percentile where the target is one."""
        row: Row = {"peers": peers, "routes": len(self._samples["choose_ms"])}
        for name in ("view_ms", "index_ms", "first_ms", "choose_ms", "full_ms", "ratio", "links"):
            samples = sorted(self._samples[name])
            row[f"{name}_p50"] = median(samples)
            row[f"{name}_p95"] = samples[min(len(samples) - 1, int(0.95 * len(samples)))]
        row["ratio_max"] = max(self._samples["ratio"])
        return row


def run(peers: Sequence[int], swarms: int) -> list[Row]:
    """Return a row for each number of peers, over so many swarms; `_ms` are milliseconds.

    view: a view made of announcements. index: what the first route of a view makes for all others.
    first: a route on a new view, index included. choose: a route after it. full: the search among
    all peers. ratio: cost of the chosen route by the cost of what that search finds. links: pairs
    of peers that were weighed for a route.
    """
    return [_measure(count, swarms) for count in peers]


def simulated() -> ModuleType:
    """Return the module that makes the swarms of the tests."""
    sys.path.append(str(ROOT / "tests" / "swarm"))
    return importlib.import_module("swarms")


def _measure(count: int, swarms: int) -> Row:
    samples, made = Samples(), simulated()
    for seed in range(swarms):
        num_blocks = MODELS[seed % len(MODELS)]
        peers = made.swarm_of(count, num_blocks, seed)
        request, health = made.request_for(peers, seed)
        request = RouteRequest(positions=request.positions, exclude=request.exclude)
        view = samples.timed("view_ms", partial(View, peers, made.NOW))
        case = Case(view, request, health, peers[0].peer_id)
        try:
            samples.timed("first_ms", case.route)
        except CoverageError:
            continue  # the request excludes the only holders of a block
        samples.timed("index_ms", case.index)
        for _ in range(REPEATS):
            samples.timed("choose_ms", case.route)
        samples.note("links", case.effort.links / (REPEATS + 1))
        samples.note("ratio", case.cost(case.route()) / samples.timed("full_ms", case.best))
    return samples.row(count)


class Case:
    """One request in one swarm."""

    def __init__(self, view: View, request: RouteRequest, health: Health, origin: str) -> None:
        self.view = view
        self.request = request
        self.health = health
        self.origin = origin
        self.effort = Effort()

    def route(self) -> Route:
        """Return the route that the router chooses."""
        request, effort = self.request, self.effort
        return choose_route(self.view, "demo", self.health, request, self.origin, effort=effort)

    def index(self) -> RouteIndex:
        """Return what the router's first route of a view makes for all others."""
        end = self.view.peer(self.origin)
        return RouteIndex(self.view.serving("demo"), self._blocks(), end, end, price)

    def best(self) -> float:
        """Return the least that a route costs."""
        end = self.view.peer(self.origin)
        offers = list(self._offers().values())
        path = cheapest_route(offers, self._blocks(), end, end, swept_path)
        assert path is not None
        return path_cost(path, end, end)

    def cost(self, route: Route) -> float:
        """Return what a route costs."""
        offers, end = self._offers(), self.view.peer(self.origin)
        return path_cost([(offers[hop.peer_id], hop.blocks) for hop in route], end, end)

    def _blocks(self) -> Span:
        return Span(0, self.view.find("demo").num_blocks)

    def _offers(self) -> dict[str, Offer]:
        terms = Terms(self.request, self._blocks(), self.health, self.view.now)
        found = map(terms.offer, self.view.serving("demo"))
        return {offer.peer.peer_id: offer for offer in found if offer is not None}
