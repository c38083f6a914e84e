"""What Prometheus gets: names, values and shapes, and a door that no scraper can hold up."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import fields

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from swarmd.core.errors import ConfigError
from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.core.span import Span
from swarmd.node import loop_lag, metrics, metrics_door
from swarmd.node.compute_log import ComputeStats, Microbatch, MicrobatchLog
from swarmd.node.coordinator import FIRST_S, GAPS_S
from swarmd.node.coordinator_stats import CoordinatorStats
from swarmd.node.exchange import LinkStats
from swarmd.node.histogram import Histogram
from swarmd.node.loop_lag import LoopLag
from swarmd.node.metric_table import DIRECTORY_ROWS, LEFT_OUT, ROWS
from swarmd.node.metrics import NodeMetrics
from swarmd.node.metrics_door import MetricsDoor
from swarmd.pipeline.causes import Cause
from swarmd.pipeline.hop_values import HopCounters
from swarmd.swarm.directory import DirectoryStats
from swarmd.swarm.view import View

ANY_PORT = "127.0.0.1:0"
NOW = 1_000_000.0
COUNTERS = {row.counter: float(number) for number, row in enumerate(ROWS, 1)}
PATIENCE_S = 60.0
LONG = 64 << 20


def model_of(name: str, number: int = 0) -> ModelInfo:
    return ModelInfo(
        name=name,
        digest=f"{number:064x}",
        num_blocks=8,
        hidden_size=64,
        vocab_size=100,
        max_model_len=512,
        eos_token_ids=(2,),
    )


def peer(
    number: int,
    start: int,
    end: int,
    model: ModelInfo | None = None,
    state: NodeState = NodeState.SERVING,
) -> Announcement:
    return Announcement(
        peer_id=f"{number:040x}",
        address=f"10.0.0.{number}:7420",
        model=model or model_of("demo"),
        span=Span(start, end),
        state=state,
        issued_at=NOW,
        expires_at=NOW + 30,
    )


def node_metrics(
    *peers: Announcement,
    log: MicrobatchLog | None = None,
    gaps: Histogram | None = None,
    first: Histogram | None = None,
) -> NodeMetrics:
    own = peer(1, 0, 4)
    view = View((own, *peers), NOW)
    log = log or MicrobatchLog()
    lag, gaps, first = (given or Histogram((1.0,)) for given in (None, gaps, first))
    told = DirectoryStats(restarts=3, sent=4, failed=5, refused=6, records_refused=7)
    return NodeMetrics(lambda: COUNTERS, log, lambda: view, told, own, lag, gaps, first)


def text_of(collector: Collector) -> str:
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry).decode()


def shown(text: str) -> dict[str, Metric]:
    """The metrics of a text, by name, as Prometheus' own parser has them."""
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families}


def values(family: Metric, suffix: str = "") -> dict[tuple[str, ...], float]:
    """The values by those of the labels, less the digest."""
    return {
        tuple(value for label, value in sample.labels.items() if label != "digest"): sample.value
        for sample in family.samples
        if sample.name == family.name + suffix
    }


# -- names and values ------------------------------------------------------------------------------


def test_each_counter_is_shown_in_its_unit_with_a_help() -> None:
    families = shown(text_of(node_metrics()))
    for row in ROWS:
        name = "swarmd_" + row.name.removesuffix("_total")
        kind = "counter" if row.name.endswith("_total") else "gauge"
        suffix = "_total" if kind == "counter" else ""
        assert families[name].type == kind
        assert families[name].documentation == row.help
        assert values(families[name], suffix) == {(): COUNTERS[row.counter] * row.unit}
    step = values(families["swarmd_compute_step_seconds"])[()]
    assert step == pytest.approx(COUNTERS["compute_step_ms"] / 1000)
    directory = {
        "directory_restarts": 3.0,
        "announcements_sent": 4.0,
        "announcements_failed": 5.0,
        "announcements_refused": 6.0,
        "directory_records_refused": 7.0,
    }
    assert {row[0] for row in DIRECTORY_ROWS} == {field.name for field in fields(DirectoryStats)}
    for name, value in directory.items():
        assert values(families[f"swarmd_{name}"], "_total") == {(): value}
    for name, family in families.items():
        assert re.fullmatch("swarmd_[a-z_]+[a-z]", name)
        assert family.documentation.endswith(".")
        assert not re.search("_(ms|s|kib|mib)$", name), "base units: seconds and bytes"


def test_every_counter_of_the_parts_has_its_row() -> None:
    """Whoever adds a counter adds a row to the table, or says why there is none."""
    parts = {
        "hop": HopCounters,
        "coordinator": CoordinatorStats,
        "compute": ComputeStats,
        "link": LinkStats,
    }
    counted = {f"{part}_{field.name}" for part, of in parts.items() for field in fields(of)}
    assert counted - {row.counter for row in ROWS} == LEFT_OUT


def test_the_cause_of_a_repair_is_in_the_name_of_its_metric() -> None:
    names = {row.counter: row.name for row in ROWS}
    for cause in Cause:
        counter = f"coordinator_repairs_{cause}"
        assert names[counter] == f"{counter}_total"


def test_microbatches_are_counted_by_size_and_time() -> None:
    log = MicrobatchLog(size=2)
    for steps, seconds in ((1, 0.5), (2, 0.25), (3, 64.0), (4, 0.25)):
        log.add(Microbatch(0.0, seconds, steps, 0, steps))
    families = shown(text_of(node_metrics(log=log)))
    sizes = families["swarmd_compute_microbatch_steps"]
    assert sizes.type == "histogram"
    buckets = values(sizes, "_bucket")
    assert [buckets[bound,] for bound in ("1", "2", "4", "256", "+Inf")] == [1, 2, 4, 4, 4]
    assert values(sizes, "_count") == {(): 4.0}, "also those that the ring has forgotten"
    assert values(sizes, "_sum") == {(): 10.0}
    buckets = values(families["swarmd_compute_microbatch_seconds"], "_bucket")
    assert [buckets[bound,] for bound in ("0.1", "0.25", "0.5", "10", "+Inf")] == [0, 2, 3, 3, 4]


def test_stalls_are_at_the_end_of_the_gaps_between_tokens() -> None:
    gaps = Histogram(GAPS_S)
    for seconds in (0.02, 0.02, 1.5):
        gaps.observe(seconds)
    shown_gaps = shown(text_of(node_metrics(gaps=gaps)))["swarmd_coordinator_token_gap_seconds"]
    buckets = values(shown_gaps, "_bucket")
    assert [buckets[bound,] for bound in ("0.01", "0.025", "1", "2", "+Inf")] == [0, 2, 2, 3, 3]


def test_waits_for_first_tokens_are_no_gaps() -> None:
    first = Histogram(FIRST_S)
    for seconds in (0.2, 20.0):
        first.observe(seconds)
    families = shown(text_of(node_metrics(first=first)))
    buckets = values(families["swarmd_coordinator_first_token_seconds"], "_bucket")
    assert [buckets[bound,] for bound in ("0.1", "0.25", "15", "30", "+Inf")] == [0, 1, 1, 2, 2]
    assert values(families["swarmd_coordinator_token_gap_seconds"], "_count") == {(): 0.0}


def test_the_swarm_as_it_is_seen_from_here() -> None:
    loading = peer(4, 4, 8, state=NodeState.LOADING)
    families = shown(text_of(node_metrics(peer(2, 0, 4), peer(3, 4, 6), loading)))
    about = families["swarmd_node_info"].samples[0].labels
    assert (about["peer"], about["model"], about["blocks"]) == (f"{1:040x}", "demo", "0:4")
    states = values(families["swarmd_view_peers"])
    assert states == {("loading",): 1, ("serving",): 3, ("draining",): 0}
    assert values(families["swarmd_view_blocks"]) == {("demo",): 8}
    assert values(families["swarmd_view_covered_blocks"]) == {("demo",): 6}
    assert values(families["swarmd_view_fewest_replicas"]) == {("demo",): 0}
    whole = shown(text_of(node_metrics(peer(2, 0, 4), peer(3, 4, 8), peer(4, 4, 8))))
    assert values(whole["swarmd_view_fewest_replicas"]) == {("demo",): 2}


def test_names_of_strangers_neither_break_the_text_nor_fill_it() -> None:
    odd = 'a"} 1\nswarmd_tokens 7\\'
    named = [peer(2, 0, 8, model_of(odd, 1)), peer(3, 0, 8, model_of("demo", 2))]
    crowd = [peer(n, 0, 8, model_of(f"a{n}", n)) for n in range(4, 100)]
    few = values(shown(text_of(node_metrics(*named)))["swarmd_view_blocks"])
    assert few.keys() == {(odd,), ("demo",)}
    many = shown(text_of(node_metrics(*named, *crowd)))["swarmd_view_blocks"]
    assert len(many.samples) == metrics.MAX_MODELS
    assert {"model": "demo", "digest": f"{0:064x}"} in [s.labels for s in many.samples]


async def test_a_loop_that_is_held_up_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_lag, "INTERVAL_S", (0.01, 0.01))
    lag = LoopLag()
    time.sleep(0.06)  # noqa: ASYNC251  what is to be seen
    while not lag.seconds.sum:  # noqa: ASYNC110  nobody tells
        await asyncio.sleep(0)
    assert lag.seconds.sum >= 0.04
    assert dict(lag.seconds.cumulative())[0.025] == 0


# -- the door --------------------------------------------------------------------------------------


async def connect(door: MetricsDoor) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    assert door.address is not None
    host, _, port = door.address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def ask(door: MetricsDoor, *pieces: str) -> tuple[str, str, str]:
    """Send a request in these pieces; return status line, headers and body."""
    reader, writer = await connect(door)
    for piece in pieces:
        writer.write(piece.encode("latin-1"))
        await writer.drain()
    async with asyncio.timeout(PATIENCE_S):
        answer = (await reader.read()).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    status, _, headers = head.partition("\r\n")
    assert "Connection: close" in headers.split("\r\n")
    return status.removeprefix("HTTP/1.1 "), headers, body


async def get(door: MetricsDoor) -> str:
    status, _, body = await ask(door, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == "200 OK"
    return body


class Counting(Collector):
    """Says how often it was asked; `pad` makes the text long, `broken` makes it fail."""

    def __init__(self, pad: int = 0) -> None:
        self.asked = 0
        self.broken = False
        self._pad = pad

    def collect(self) -> Iterator[Metric]:
        if self.broken:
            raise ValueError("no figures today")
        self.asked += 1
        yield GaugeMetricFamily("swarmd_asked", "x" * self._pad, self.asked)


async def test_a_scrape_gets_all_metrics_and_those_of_the_process() -> None:
    async with MetricsDoor(ANY_PORT) as door:
        door.show(node_metrics())
        pieces = ("GET /metr", "ics?x=1 HTTP/1.1\r\nAccept: */*\r", "\n\r\n")
        status, headers, body = await ask(door, *pieces)
        assert status == "200 OK"
        assert "Content-Type: text/plain; version=0.0.4; charset=utf-8" in headers
        assert f"Content-Length: {len(body)}" in headers
        families = shown(body)
        assert values(families["swarmd_link_peers_lost"], "_total")[()] > 0
        assert families["process_resident_memory_bytes"].samples[0].value > 1 << 20
        status, head_headers, body = await ask(door, "HEAD /metrics HTTP/1.0\r\n\r\n")
        assert (status, body) == ("200 OK", "")
        assert re.search(r"Content-Length: \d{4,}", head_headers)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("GET /metrics/../x HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n", "405 Method Not Allowed"),
        ("\x16\x03\x01\x02\xff\r\n\r\n", "400 Bad Request"),
        ("PRI * HTTP/2.0\r\n\r\n", "400 Bad Request"),
        ("\r\n\r\n", "400 Bad Request"),
        ("GET /metrics HTTP/1.1\r\nX: " + "x" * 9000, "431 Request Header Fields Too Large"),
    ],
)
async def test_other_requests_are_refused(request_head: str, status: str) -> None:
    async with MetricsDoor(ANY_PORT) as door:
        door.show(Counting())
        assert (await ask(door, request_head))[0] == status
        assert "swarmd_asked 1.0" in await get(door), "nothing was collected before"


async def test_until_the_model_is_loaded_scrapers_are_told_to_come_again() -> None:
    async with MetricsDoor(ANY_PORT) as door:
        status, headers, _ = await ask(door, "GET /metrics HTTP/1.1\r\n\r\n")
        assert status == "503 Service Unavailable"
        assert "Retry-After: 5" in headers
        door.show(Counting())
        assert "swarmd_asked" in await get(door)


async def test_figures_that_cannot_be_had_end_nothing() -> None:
    async with MetricsDoor(ANY_PORT) as door:
        door.show(counting := Counting())
        counting.broken = True
        status, _, body = await ask(door, "GET /metrics HTTP/1.1\r\n\r\n")
        assert status == "500 Internal Server Error"
        assert "figures" not in body, "what went wrong is for the log"
        counting.broken = False
        assert "swarmd_asked 1.0" in await get(door)


async def test_those_who_ask_at_once_get_the_same_text() -> None:
    now = 100.0
    async with MetricsDoor(ANY_PORT, now=lambda: now) as door:
        door.show(Counting())
        assert "swarmd_asked 1.0" in await get(door)
        now += 0.4
        assert "swarmd_asked 1.0" in await get(door)
        now += 0.2
        assert "swarmd_asked 2.0" in await get(door)


async def test_who_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_door, "TIMEOUT_S", 0.05)
    async with MetricsDoor(ANY_PORT) as door:
        reader, writer = await connect(door)
        writer.write(b"GET /metrics HTTP/1.1\r\n")
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)
        writer.close()


async def test_who_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_door, "TIMEOUT_S", 0.2)
    async with MetricsDoor(ANY_PORT) as door:
        door.show(Counting(pad=LONG))
        assert door.address is not None
        port = int(door.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            # Until it is accepted there is none; the answer is larger than what the system buffers.
            for state in (True, False):
                async with asyncio.timeout(PATIENCE_S):
                    while bool(door.connections) is not state:  # noqa: ASYNC110  nobody tells
                        await asyncio.sleep(0.001)
            taken = 0
            while got := len(await asyncio.to_thread(sock.recv, 1 << 20)):
                taken += got
            assert 0 < taken < LONG


async def test_a_crowd_is_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_door, "MAX_CONNECTIONS", 2)
    async with MetricsDoor(ANY_PORT) as door:
        door.show(Counting())
        idle = [await connect(door) for _ in range(2)]
        reader, writer = await connect(door)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)
        writer.close()
        first, request = idle[0], b"GET /metrics HTTP/1.1\r\n\r\n"
        first[1].write(request)
        answer = await asyncio.wait_for(first[0].read(), PATIENCE_S)
        assert b"swarmd_asked" in answer, "those who were there first are served"
        assert "swarmd_asked" in await get(door), "and their place is free again"
        for _, writer in idle:
            writer.close()


async def test_a_port_in_use_is_named_with_the_flag_that_helps() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"cannot listen on {address}: .*--metrics"):
            async with MetricsDoor(address):
                pass


async def test_the_door_is_shut_on_leaving_and_nothing_listens_without_an_address() -> None:
    async with MetricsDoor("localhost:0") as door:
        assert re.fullmatch(r"localhost:\d{2,}", door.address or "")
        reader, writer = await connect(door)
        door.show(Counting())
        assert "swarmd_asked" in await get(door)
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)
    writer.close()
    with pytest.raises(ConnectionError):
        await connect(door)
    async with MetricsDoor(None) as closed:
        assert closed.address is None
