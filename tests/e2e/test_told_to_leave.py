"""The last holder of some blocks is told to leave: by two signals, or by its cloud's notice."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from e2e_swarm import READY_S, wait_for_replicas
from forked import forked

from swarmd.cli.local_swarm import LocalNode, LocalSwarm
from swarmd.client import Client

PROMPT = "def read_file(path):"
TOKENS = 300
FLAGS = ("--dtype", "float32", "--threads", "1", "--kv-memory", "64MiB")
ROOM = "9.35MiB"
"""Of the demo model in float32: half of its blocks, with embedding and head."""
LONG = ("--drain-timeout", "600", "--gap-wait", "240")
"""Longer than the tests wait for anything."""


def test_two_signals_end_a_node_whose_session_runs_and_one_each_a_whole_swarm(
    model_dir: Path,
) -> None:
    with LocalSwarm(str(model_dir), ("0:4", "4:8"), flags=(*FLAGS, *LONG), launch=forked) as nodes:
        nodes.wait_ready(READY_S)
        wait_for_replicas(nodes, replicas=1)
        stays, leaves = nodes.nodes
        with Client(stays.address, timeout=300.0) as client:
            plain = client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True)
            tokens = client.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True)
            for count, _ in enumerate(tokens, start=1):
                if count == 20:
                    leaves.signal(signal.SIGTERM)
                    wait_for_log(leaves, "waits for another holder blocks=4:8")
                if count == 60:
                    assert leaves.alive, "nobody else can go on with the session"
                    leaves.signal(signal.SIGTERM)
                    assert leaves.process.wait(60.0) == 0
                    leaves.restart()
        assert tokens.result.token_ids == plain.token_ids
        assert tokens.result.repairs >= 1
        assert tokens.result.route[1].pid == leaves.pid, "the one that was started after it"
        # Where everybody leaves, nobody waits for anybody.
        for node in nodes.nodes:
            node.signal(signal.SIGTERM)
        began = time.monotonic()
        assert [node.process.wait(60.0) for node in nodes.nodes] == [0, 0]
        print(f"a swarm of two has left after {time.monotonic() - began:.1f} s")


TOKEN = "spot-token"
PREFIX = "/latest/meta-data/"


class Ec2(ThreadingHTTPServer):
    """Instance metadata as of IMDSv2: for those who bring a token."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.action: dict[str, str] | None = None
        """The spot action, once there is one."""
        self.asked = threading.Event()
        """Set when somebody has looked for one, and there was none."""

    @property
    def env(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.server_address[1]}"
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url}

    def terminate(self, seconds: float) -> float:
        """Give notice; return when the machine goes, in seconds since the Unix epoch."""
        at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
        self.action = {"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
        return at.timestamp()


class _Answer(BaseHTTPRequestHandler):
    server: Ec2

    def do_PUT(self) -> None:
        ttl = int(self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "0"))
        known = self.path == "/latest/api/token" and 1 <= ttl <= 21600
        self._say(200, TOKEN) if known else self._say(400)

    def do_GET(self) -> None:
        if self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self._say(401)
        elif self.path == f"{PREFIX}spot/instance-action" and self.server.action:
            self._say(200, json.dumps(self.server.action))
        else:
            self._say(404)
            self.server.asked.set()

    def _say(self, status: int, body: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """The test's output is for other things."""


@contextmanager
def ec2() -> Iterator[Ec2]:
    with Ec2() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_a_spot_machine_that_is_to_go_has_left_by_then(model_dir: Path, tmp_path: Path) -> None:
    flags = (*FLAGS, *LONG, "--weights-memory", ROOM)
    with (
        ec2() as cloud,
        LocalSwarm(str(model_dir), ("auto",), flags=flags, launch=forked) as nodes,
    ):
        ports = ("--listen", "127.0.0.1:0", "--dht-listen", "127.0.0.1:0")
        nodes.wait_ready(READY_S)
        peers = ("--peers", nodes.addresses[0], "--preemption", "aws")
        args = (str(model_dir), "--blocks", "4:8", *ports, *peers, *flags)
        spot = LocalNode(args, tmp_path / "spot", {**os.environ, **cloud.env})
        nodes.nodes.append(spot)
        nodes.wait_ready(READY_S)
        wait_for_replicas(nodes, replicas=1)
        assert cloud.asked.wait(READY_S)
        goes_at = cloud.terminate(20.0)
        # The other node might take its blocks, were its own not held by it alone: as long as it
        # may, it stays.
        assert spot.process.wait(60.0) == 0
        # It waits until a few seconds before that. What follows takes longer on a busy machine.
        assert time.time() < goes_at + 10.0
        waits = re.search(r"notice=spot terminate seconds=(\d+)", spot.log())
        assert waits is not None
        assert int(waits[1]) <= 15
        assert "no other holder came in time blocks=4:8" in spot.log()


def wait_for_log(node: LocalNode, text: str) -> None:
    deadline = time.monotonic() + 60.0
    while text not in node.log():
        assert node.alive, node.log()
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)
