"""Every verb against real nodes: what it prints, how it ends, what monitoring and systemd see."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from command_line import PATIENCE_S, swarmd
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client.parser import text_string_to_metric_families

from swarmd import __version__
from swarmd.cli.local_swarm import LocalNode, LocalSwarm
from swarmd.client import Client
from swarmd.core.errors import CoverageError
from swarmd.node.metric_table import LEFT_OUT, ROWS

PROMPT = "def fibonacci(n):"
SERVICES = ("swarmd.v1.Inference", "swarmd.v1.Peer")


@pytest.fixture
def node(whole_swarm: LocalSwarm) -> tuple[str, str]:
    """The flag that names a node of the swarm."""
    return "--node", whole_swarm.addresses[0]


# -- generate --------------------------------------------------------------------------------------


def test_generate_json_is_one_object_with_the_promised_keys(
    client: Client, whole_swarm: LocalSwarm, node: tuple[str, str]
) -> None:
    done = swarmd("generate", PROMPT, "--max-tokens", "20", "--ignore-eos", "--json", *node)
    assert (done.code, done.err) == (0, "")
    (line,) = done.out.splitlines()
    got = json.loads(line)
    expected = client.complete(PROMPT, max_tokens=20, ignore_eos=True)
    assert got["text"] == expected.text
    assert got["token_ids"] == list(expected.token_ids)
    assert got["finish_reason"] == "length"
    assert got["num_prompt_tokens"] == expected.num_prompt_tokens
    for count in ("repairs", "resumes"):  # a hop that got no time was left, if there are any
        assert got[count] >= 0
    for seconds in ("ttft_s", "tokens_per_s", "max_stall_s"):
        assert got[seconds] > 0
    by_pid = {one.pid: one for one in whole_swarm.nodes}
    for hop, blocks in zip(got["route"], ("0:3", "3:6", "6:8"), strict=True):
        assert hop.keys() == {"peer", "address", "blocks", "pid"}
        assert hop["blocks"] == blocks
        assert by_pid[hop["pid"]].address == hop["address"]
        assert re.fullmatch("[0-9a-f]{40}", hop["peer"])


def test_generate_prints_the_text_alone_and_stats_elsewhere(
    client: Client, node: tuple[str, str]
) -> None:
    text = client.complete(PROMPT, max_tokens=20, ignore_eos=True).text
    flags = ("--max-tokens", "20", "--ignore-eos", "--stats", *node)
    done = swarmd("generate", "-", *flags, stdin=PROMPT)
    assert (done.code, done.out) == (0, text + "\n")
    assert re.fullmatch(
        r"20 tokens, [\d.]+ tokens/s, first after [\d.]+ s, longest stall [\d.]+ s, "
        r"\d+ repairs, \d+ resumes, length; route 0:3 at \S+ \(pid \d+\) > 3:6 at .* > 6:8 at .*\n",
        done.err,
    )


def test_generate_ids_takes_and_prints_ids(client: Client, node: tuple[str, str]) -> None:
    prompt = client.tokenize(PROMPT)
    expected = client.complete(PROMPT, max_tokens=20, ignore_eos=True).token_ids
    given = ",".join(map(str, prompt))
    done = swarmd("generate", "--ids", given, "--max-tokens", "20", *node)
    assert (done.code, done.out) == (0, ",".join(map(str, expected)) + "\n")


def test_generate_stops_where_it_is_told(client: Client, node: tuple[str, str]) -> None:
    free = client.complete(PROMPT, max_tokens=40, ignore_eos=True).text
    stop = free.strip()[6:9]
    flags = ("--max-tokens", "40", "--ignore-eos", "--json", *node)
    done = swarmd("generate", PROMPT, "--stop", "never said", "--stop", stop, *flags)
    got = json.loads(done.out)
    assert (got["text"], got["finish_reason"]) == (free[: free.index(stop)], "stop")


def test_a_seed_decides_what_is_drawn(node: tuple[str, str]) -> None:
    def draw(seed: int) -> str:
        hot = ("--temperature", "1.2", "--top-k", "50", "--top-p", "0.98", "--seed", str(seed))
        return swarmd("generate", PROMPT, "--max-tokens", "24", *hot, *node).out

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_ctrl_c_ends_a_generation_and_frees_its_kv(
    client: Client, whole_swarm: LocalSwarm, node: tuple[str, str]
) -> None:
    line = (sys.executable, "-m", "swarmd.cli.main", "generate", PROMPT, "--ignore-eos", *node)
    with subprocess.Popen(
        (*line, "--max-tokens", "3000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (130, b"")
    deadline = time.monotonic() + 60.0
    for address in whole_swarm.addresses:
        with Client(address, timeout=30.0) as one:
            while one.status().counters["hop_kv_reserved_bytes"]:
                assert time.monotonic() < deadline, "KV is still in use"


# -- status, version, drain ------------------------------------------------------------------------


def test_status_is_a_table_for_people_and_an_object_for_programs(
    whole_swarm: LocalSwarm, node: tuple[str, str]
) -> None:
    shown = swarmd("status", *node)
    assert (shown.code, shown.err) == (0, "")
    rows = [line.split() for line in shown.out.splitlines()]
    assert rows[1][:6] == ["peer", "address", "blocks", "state", "device", "dtype"]
    table = {row[1]: row[2:6] for row in rows if len(row) > 6 and ":" in row[1]}
    spans = ("0:3", "0:3", "3:6", "3:6", "6:8", "6:8")
    assert table == {
        one.address: [span, "serving", "cpu", "float32"]
        for one, span in zip(whole_swarm.nodes, spans, strict=True)
    }
    assert "demo_model: 8 of 8 blocks, replicas 2" in shown.out
    got = json.loads(swarmd("status", "--json", *node).out)
    assert {peer["address"]: peer["pid"] for peer in got["peers"]} == {
        one.address: one.pid for one in whole_swarm.nodes
    }
    (model,) = got["models"]
    assert (model["name"], model["missing"], model["replicas"]) == ("demo_model", [], 2)


def test_version_names_what_it_runs_on() -> None:
    done = swarmd("version", "--json")
    assert json.loads(done.out)["swarmd"] == __version__
    assert swarmd("--version").out == f"swarmd {__version__}\n"


def test_a_node_drains_only_if_others_hold_its_blocks(
    client: Client, whole_swarm: LocalSwarm
) -> None:
    undisturbed = client.complete(PROMPT, max_tokens=200, ignore_eos=True)
    tokens = client.generate(PROMPT, max_tokens=200, ignore_eos=True)
    next(tokens)
    # Both holders of its last blocks are told at one moment: each sees the other serve.
    pair = whole_swarm.nodes[4:6]
    with ThreadPoolExecutor() as pool:
        answers = [*pool.map(lambda node: swarmd("drain", node.address), pair)]
    (drained, leaving), (refused, twin) = sorted(
        zip(answers, pair, strict=True), key=lambda found: found[0].code
    )
    assert (drained.code, drained.err) == (0, "")
    assert refused.code == 2
    assert refused.error.startswith("nobody else holds blocks 6:8: the model would be gone; ")
    assert re.fullmatch(
        rf"{leaving.address} drains and will exit: \d sessions? to finish\n", drained.out
    )
    # What runs is finished, there or elsewhere.
    assert (len([*tokens]), tokens.result.token_ids) == (199, undisturbed.token_ids)
    assert leaving.process.wait(PATIENCE_S) == 0
    wait_until_gone(client, leaving)

    refused = swarmd("drain", twin.address)
    assert refused.code == 2
    assert refused.error.startswith("nobody else holds blocks 6:8: the model would be gone; ")
    assert client.complete(PROMPT, max_tokens=2).route[2].pid == twin.pid

    forced = swarmd("drain", twin.address, "--force", "--json")
    assert json.loads(forced.out) == {"address": twin.address, "sessions": 0}
    assert twin.process.wait(PATIENCE_S) == 0
    wait_until_gone(client, twin)
    with pytest.raises(CoverageError, match="6:8"):
        client.complete(PROMPT, max_tokens=2)


def wait_until_gone(client: Client, node: LocalNode) -> None:
    deadline = time.monotonic() + 60.0
    while node.pid in {peer.pid for peer in client.status().peers}:
        assert time.monotonic() < deadline, "its announcement is still there"


def test_no_node_is_a_failure_and_a_wrong_flag_a_mistake() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        nobody = f"127.0.0.1:{sock.getsockname()[1]}"
    for line in (
        ("generate", "p", "--node", nobody),
        ("status", "--node", nobody),
        ("drain", nobody),
    ):
        failed = swarmd(*line)
        assert failed.code == 1
        assert failed.error == f"nobody answers at {nobody}: is `swarmd serve` running there?"
    assert swarmd("status", "--nodes", nobody).code == 2


# -- health, reflection, systemd -------------------------------------------------------------------


def test_health_checks_and_reflection_are_served(whole_swarm: LocalSwarm) -> None:
    with grpc.insecure_channel(whole_swarm.addresses[3]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=60.0)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="nope"), timeout=60.0)
        assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        question = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = reflection.ServerReflectionInfo(iter([question]), timeout=60.0)
        found = {service.name for service in answer.list_services_response.service}
        assert {*SERVICES, "grpc.health.v1.Health"} <= found


def scraped(node: LocalNode) -> dict[str, float]:
    """What Prometheus gets from a node, by names with their labels."""
    (url,) = re.findall(r"metrics at (http://\S+/metrics)", node.log())
    with urllib.request.urlopen(url, timeout=60.0) as answer:
        text = answer.read().decode()
    return {
        " ".join((sample.name, *(f"{k}={v}" for k, v in sample.labels.items() if k != "digest"))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_gets_what_the_swarm_does(client: Client, whole_swarm: LocalSwarm) -> None:
    def told() -> Counter[str]:
        return sum((Counter(scraped(one)) for one in whole_swarm.nodes), Counter())

    before = told()
    done = client.complete(PROMPT, max_tokens=20, ignore_eos=True)
    hops = len(done.route)
    ends = {
        "swarmd_coordinator_generations_finished_total": 1,
        "swarmd_hop_sessions_freed_total": hops,
        "swarmd_event_loop_lag_seconds_count": 1,
    }
    deadline = time.monotonic() + 60.0
    # A node gives the same text for half a second, and a generation ends there after it does here.
    while any((grown := told() - before)[name] < count for name, count in ends.items()):
        assert time.monotonic() < deadline, f"no generation is seen to finish: {grown}"
        time.sleep(0.1)
    assert grown["swarmd_coordinator_generations_started_total"] == 1
    assert grown["swarmd_coordinator_tokens_emitted_total"] == 20
    assert grown["swarmd_hop_sessions_opened_total"] == hops
    # The last token drawn is not computed.
    assert grown["swarmd_compute_positions_total"] >= hops * (20 - 1)
    for name in ("steps", "seconds"):
        assert grown[f"swarmd_compute_microbatch_{name}_count"] >= hops * (20 - 1)
    assert grown["swarmd_compute_busy_seconds_total"] > 0
    assert grown["swarmd_link_activation_sent_bytes_total"] > 0

    one = whole_swarm.nodes[0]
    now = scraped(one)
    assert now["swarmd_view_peers state=serving"] == len(whole_swarm.nodes)
    assert now["swarmd_view_covered_blocks model=demo_model"] == 8
    assert now["swarmd_view_fewest_replicas model=demo_model"] == 2
    assert now["swarmd_kv_capacity_bytes"] == 64 << 20
    with Client(one.address, timeout=30.0) as at_one:
        counters = at_one.status().counters
    assert counters.keys() == {row.counter for row in ROWS} | LEFT_OUT
    opened = counters["hop_opened"]
    assert now["swarmd_hop_sessions_opened_total"] == opened


@contextmanager
def service_manager(path: Path) -> Iterator[socket.socket]:
    """The socket on which systemd hears from its services."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(PATIENCE_S)
        yield sock


def test_systemd_hears_of_readiness_life_and_the_end(model_dir: Path, tmp_path: Path) -> None:
    with service_manager(tmp_path / "notify") as heard:
        env = {
            **os.environ,
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            "WATCHDOG_USEC": "600000",
            "PYTHONUNBUFFERED": "1",
        }
        # By its name, which the directory cannot listen on but an address found under it.
        ports = ("--listen", "localhost:0")
        args = (str(model_dir), "--blocks", "0:2", *ports, "--kv-memory", "16MiB", "--json")
        node = LocalNode(args, tmp_path / "node", env)
        try:
            told = []
            while (ready := heard.recv(4096).decode().splitlines())[0] != "READY=1":
                told += ready
            assert any(re.fullmatch(r"STATUS=load blocks 0:2: \d+ %", line) for line in told)
            assert ready[1].startswith("STATUS=serving demo_model blocks 0:2 of 8 at localhost:")
            said = next(json.loads(line) for line in node.log().splitlines() if line[0] == "{")
            line = ready[1].removeprefix("STATUS=")
            assert (said["event"], said["message"]) == ("serving", line)
            assert f" at {said['address']} " in line
            assert (said["start"], said["end"], said["covered_blocks"]) == (0, 2, 2)
            assert f" = {said['kv_tokens']:,} tokens" in line
            assert re.fullmatch("[0-9a-f]{40}", said["peer"])
            assert re.fullmatch("[0-9a-f]{64}", said["digest"])
            assert said["directory"]
            assert heard.recv(4096) == b"WATCHDOG=1"
            assert heard.recv(4096) == b"WATCHDOG=1"
            # A swarm that is not whole yet: who asks is told what is missing.
            address = re.findall(r" at (\S+:\d+) ", ready[1])[0]
            refused = swarmd("generate", PROMPT, "--node", address)
            assert refused.code == 1
            assert "2:8" in refused.error
            node.signal(signal.SIGTERM)
            while (message := heard.recv(4096)) == b"WATCHDOG=1":
                pass
            assert message == b"STOPPING=1"
            assert node.process.wait(PATIENCE_S) == 0
        finally:
            node.kill()


# -- the demo --------------------------------------------------------------------------------------


def test_the_demo_holds_and_its_swarm_stays_until_it_is_told_to_end() -> None:
    command = (sys.executable, "-m", "swarmd.cli.main", "demo", "--json", "--keep")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        try:
            shown = json.loads(demo.stdout.readline())
            told = next(line for line in demo.stderr if "swarmd status --node" in line)
            seen = json.loads(swarmd(*told.split()[1:], "--json").out)
            assert seen["models"][0]["missing"] == []
            daemons = psutil.Process(demo.pid).children()
            states = [Path(daemon.cmdline()[-1]) for daemon in daemons]
            assert [state.is_dir() for state in states] == [True] * 3
            demo.send_signal(signal.SIGTERM)
            assert demo.wait(PATIENCE_S) == 128 + signal.SIGTERM
        finally:
            demo.kill()
    assert shown["held"] is True
    assert shown["same_text"] is True
    assert shown["disturbed"]["text"] == shown["undisturbed"]["text"]
    assert shown["disturbed"]["repairs"] >= 1
    assert shown["killed_pid"] not in {hop["pid"] for hop in shown["disturbed"]["route"]}
    for pid in (shown["killed_pid"], *(daemon.pid for daemon in daemons)):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert not any(state.exists() for state in states)
