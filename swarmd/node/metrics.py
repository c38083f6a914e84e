"""A node's figures for Prometheus: counters, histograms, and what the swarm looks like from here.

Counting is the business of the parts; names and helps of counters stand in
`swarmd.node.metric_table`; how the text leaves the node is `swarmd.node.metrics_door`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import isinf

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.node.compute_log import MicrobatchLog
from swarmd.node.executor import Executor
from swarmd.node.histogram import Histogram
from swarmd.node.loop_lag import LoopLag
from swarmd.node.metric_table import DIRECTORY_ROWS, ROWS
from swarmd.node.metrics_door import MetricsDoor
from swarmd.node.presence import Presence
from swarmd.node.status import StatusReport
from swarmd.swarm.dht import DhtDirectory
from swarmd.swarm.directory import DirectoryStats
from swarmd.swarm.view import View

MAX_MODELS = 32
"""Series of models per scrape; announcements of strangers must not make any number of them."""


def show_metrics(
    door: MetricsDoor,
    report: StatusReport,
    executor: Executor,
    presence: Presence,
    directory: DhtDirectory,
    lag: LoopLag,
) -> None:
    """Have the door show this node from now on, if it is open."""
    own = presence.own
    if door.address is None or own is None:
        return
    door.show(
        NodeMetrics(
            report.counters,
            executor.log,
            lambda: presence.view,
            directory.stats,
            own,
            lag.seconds,
            report.gaps,
            report.first_tokens,
        )
    )


class NodeMetrics(Collector):
    """Collects on the event loop; nothing that it reads there is computed anew but by the view.

    `counters` are those of the node's report, `view` is what it knows of the swarm, `directory`
    what has become of announcements, `own` is the node's, `lag` the loop's, `gaps` are those
    between the tokens of its sessions, `first_tokens` the waits for the first ones.
    """

    def __init__(
        self,
        counters: Callable[[], Mapping[str, float]],
        microbatches: MicrobatchLog,
        view: Callable[[], View],
        directory: DirectoryStats,
        own: Announcement,
        lag: Histogram,
        gaps: Histogram,
        first_tokens: Histogram,
    ) -> None:
        self._counters = counters
        self._microbatches = microbatches
        self._view = view
        self._directory = directory
        self._own = own
        self._lag = lag
        self._gaps = gaps
        self._first_tokens = first_tokens

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the node."""
        yield _about(self._view().peer(self._own.peer_id) or self._own)
        counters = self._counters()
        for row in ROWS:
            yield row.family(counters[row.counter])
        yield from self._histograms()
        for field, name, help in DIRECTORY_ROWS:
            yield CounterMetricFamily(
                f"swarmd_{name}", help, float(getattr(self._directory, field))
            )
        yield from _swarm(self._view(), self._own.model.digest)

    def _histograms(self) -> Iterator[Metric]:
        steps, seconds = self._microbatches.sizes, self._microbatches.seconds
        yield _histogram("compute_microbatch_steps", "Session steps in a microbatch.", steps)
        yield _histogram("compute_microbatch_seconds", "Time that a microbatch took.", seconds)
        yield _histogram(
            "coordinator_token_gap_seconds",
            "Time between a session's tokens, also where it came from another coordinator.",
            self._gaps,
        )
        yield _histogram(
            "coordinator_first_token_seconds",
            "Time from a session's beginning to its first token.",
            self._first_tokens,
        )
        yield _histogram(
            "event_loop_lag_seconds", "How late a timer of the event loop came.", self._lag
        )


def _histogram(name: str, help: str, values: Histogram) -> Metric:
    buckets = [
        ("+Inf" if isinf(bound) else f"{bound:g}", count) for bound, count in values.cumulative()
    ]
    return HistogramMetricFamily(f"swarmd_{name}", help, buckets, values.sum)


def _about(own: Announcement) -> Metric:
    labels = {
        "peer": own.peer_id,
        "address": own.address,
        "model": own.model.name,
        "blocks": str(own.span),
        "version": own.version,
    }
    return InfoMetricFamily("swarmd_node", "What this node is.", labels)


def _swarm(view: View, own_digest: str) -> Iterator[Metric]:
    """What the swarm looks like from here. Worked out once for each view, however many ask."""
    peers = GaugeMetricFamily("swarmd_view_peers", "Peers known here.", labels=["state"])
    for state, count in view.remember("metrics: states", lambda: _states(view)).items():
        peers.add_metric([state], count)
    yield peers
    labels = ["model", "digest"]
    blocks = GaugeMetricFamily("swarmd_view_blocks", "Blocks of a model.", labels=labels)
    covered = GaugeMetricFamily(
        "swarmd_view_covered_blocks", "Blocks of a model that any peer serves.", labels=labels
    )
    fewest = GaugeMetricFamily(
        "swarmd_view_fewest_replicas", "Peers that serve a model's thinnest block.", labels=labels
    )
    # The own model first, should there be too many.
    models = sorted(view.models, key=lambda model: model.digest != own_digest)[:MAX_MODELS]
    for model in models:
        label = [model.name, model.digest]
        replicas = _replicas(view, model)
        blocks.add_metric(label, model.num_blocks)
        covered.add_metric(label, sum(count > 0 for count in replicas))
        fewest.add_metric(label, min(replicas, default=0))
    yield from (blocks, covered, fewest)


def _states(view: View) -> dict[str, int]:
    states = [NodeState(peer.state) for peer in view.peers]
    shown = (NodeState.LOADING, NodeState.SERVING, NodeState.DRAINING)
    return {state.name.lower(): states.count(state) for state in shown}


def _replicas(view: View, model: ModelInfo) -> list[int]:
    key = ("metrics: replicas", model.digest)
    return view.remember(key, lambda: view.replicas(model.digest))
