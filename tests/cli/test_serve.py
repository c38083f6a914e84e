"""`swarmd serve` hands the daemon its configuration, whole, and shows how loading comes along."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import swarmd.node
from swarmd.cli.main import run
from swarmd.cli.progress import LoadProgress
from swarmd.cli.serve import log_to_stderr
from swarmd.core.config import KEYS, NodeConfig, flag_name, load_config
from swarmd.core.errors import ModelError
from swarmd.core.span import Span
from swarmd.node import preflight
from swarmd.node.ready import Ready

READY = Ready(
    model="toy",
    digest="d" * 64,
    blocks=Span(2, 5),
    num_blocks=8,
    address="127.0.0.1:7420",
    peer="a" * 40,
    directory=("/ip4/127.0.0.1/tcp/7421/p2p/x",),
    dtype="float32",
    device="cpu",
    kv_bytes=64 << 20,
    kv_tokens=5_000,
    peers=1,
    covered_blocks=6,
)
LINE = (
    "serving toy blocks 2:5 of 8 at 127.0.0.1:7420 (float32 on cpu, KV 64.0 MiB = 5,000 tokens); "
    "1 other peer, 6 of 8 blocks covered"
)


@dataclass
class Daemon:
    """Stands where the daemon's module is, and keeps what it is called with."""

    configs: list[NodeConfig] = field(default_factory=list)
    error: Exception | None = None
    code: int = 0

    def run(
        self, config: NodeConfig, *, say: Callable[[Ready], None], progress: Callable[..., None]
    ) -> int:
        self.configs.append(config)
        if self.error is not None:
            raise self.error
        progress(1, 2, "weights")
        say(READY)
        return self.code


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    stand_in: Any = Daemon()
    monkeypatch.setitem(sys.modules, "swarmd.node.daemon", stand_in)
    monkeypatch.setattr(swarmd.node, "daemon", stand_in, raising=False)
    monkeypatch.setattr(preflight, "cleared", lambda config: nullcontext())
    monkeypatch.setattr(preflight, "check_model", lambda config: None)
    monkeypatch.setattr(preflight, "import_models", lambda: None)
    for name in ("SWARMD_MODEL", "SWARMD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return stand_in  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("swarmd")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


FLAGS: dict[str, str] = {
    "revision": "r", "blocks": "2:5", "listen": "127.0.0.1:1", "announce": "a:2",
    "peers": "b:3,c:4", "dht_listen": "127.0.0.1:0", "device": "cuda:1", "dtype": "bfloat16",
    "threads": "3", "kv_memory": "4GiB", "replay_memory": "1MiB", "link_memory": "65MiB",
    "max_model_len": "77", "standby": "1",
    "max_sessions": "5", "served_model_name": "n", "chunk_size": "9", "gap_wait": "1.5",
    "orphan_grace": "2.5", "link_timeout": "3.5", "drain_timeout": "4.5", "lease": "5.5",
    "state_dir": "/s", "log_level": "debug", "metrics": "127.0.0.1:9",
    "keep_alive_limit": "6.5", "keep_memory": "3MiB", "weights_memory": "5GiB", "preemption": "gcp",
}  # fmt: skip


def test_every_flag_reaches_the_daemon(daemon: Daemon) -> None:
    switched = {"insecure": True, "no_prefix_cache": True, "no_rebalance": True}
    assert {*FLAGS, "model", *switched} == KEYS.keys()
    line = [word for key, value in FLAGS.items() for word in (flag_name(key), value)]
    assert run(["serve", "m", *line, *map(flag_name, switched)]) == 0
    expected = load_config(FLAGS | {"model": "m"} | switched, {})
    assert daemon.configs == [expected]
    defaults = NodeConfig(model="")
    assert all(getattr(expected, key) != getattr(defaults, key) for key in KEYS)


def test_the_model_may_come_from_the_file(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('model = "from-file"\nthreads = 2\n')
    assert run(["serve", "--config", str(file), "--threads", "3"]) == 0
    assert run(["serve", "from-flag", "--config", str(file)]) == 0
    assert [(c.model, c.threads) for c in daemon.configs] == [("from-file", 3), ("from-flag", 2)]


def test_variables_count(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('model = "from-file"\n')
    monkeypatch.setenv("SWARMD_CONFIG", str(file))
    monkeypatch.setenv("SWARMD_CHUNK_SIZE", "64")
    assert run(["serve"]) == 0
    assert (daemon.configs[0].model, daemon.configs[0].chunk_size) == ("from-file", 64)


def test_the_ready_line_and_the_code_are_the_daemons(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.code = 3
    assert run(["serve", "m"]) == 3
    assert capsys.readouterr().out == LINE + "\n"
    assert run(["serve", "m", "--json"]) == 3
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "event": "serving",
        "message": LINE,
        "model": "toy",
        "digest": "d" * 64,
        "blocks": "2:5",
        "start": 2,
        "end": 5,
        "num_blocks": 8,
        "address": "127.0.0.1:7420",
        "peer": "a" * 40,
        "directory": ["/ip4/127.0.0.1/tcp/7421/p2p/x"],
        "dtype": "float32",
        "device": "cpu",
        "kv_bytes": 64 << 20,
        "kv_tokens": 5000,
        "peers": 1,
        "covered_blocks": 6,
    }


def test_a_model_without_kv_per_token_has_room_for_sessions_of_any_length() -> None:
    assert "KV 2.0 GiB = sessions of any length" in str(
        replace(READY, kv_bytes=2 << 30, kv_tokens=None)
    )


def test_a_node_that_cannot_start_says_why(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.error = ModelError("'m' cannot be split")
    assert run(["serve", "m"]) == 2
    assert capsys.readouterr().err.endswith("swarmd: 'm' cannot be split\n")


def test_what_is_dangerous_is_said_before_the_start(
    daemon: Daemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", "m", "--listen", "10.0.0.1:1", "--insecure"]) == 0
    assert "WARNING swarmd.serve --insecure: anybody who can reach 10.0.0.1:1" in (
        capsys.readouterr().err
    )
    assert run(["serve", "m", "--listen", "127.0.0.1:1"]) == 0
    assert capsys.readouterr().err.count("WARNING") == 0


# -- progress and logs -----------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_a_line_per_tenth_where_nobody_watches(
    caplog: pytest.LogCaptureFixture,
) -> None:
    progress = LoadProgress()
    with caplog.at_level(logging.INFO, "swarmd"):
        for done in range(1001):
            progress(done, 1000, "download")
        progress(5, 5, "hash")
        progress(0, 0, "nothing")
    said = [record.getMessage() for record in caplog.records]
    assert said[:11] == [
        f"loading what='download' percent={n} bytes=1000" for n in range(0, 101, 10)
    ]
    assert said[11:] == [
        "loading what='hash' percent=100 bytes=5",
        "loading what='nothing' percent=100 bytes=0",
    ]


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = LoadProgress()
    progress(1 << 20, 4 << 20, "download toy")
    progress(2 << 20, 4 << 20, "download toy")
    progress.close()
    assert "download toy" in terminal.getvalue()
    assert "2.0/4.0 MiB" in terminal.getvalue()


def test_our_log_begins_at_its_level_and_others_at_warnings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_to_stderr("debug", {})
    logging.getLogger("swarmd.node").debug("seen count=%d", 1)
    logging.getLogger("other").info("unseen")
    logging.getLogger("other").warning("heard")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "DEBUG swarmd.node seen count=1",
        "WARNING other heard",
    ]
    log_to_stderr("error", {"JOURNAL_STREAM": "8:1"})
    logging.getLogger("swarmd.node").warning("unseen")
    logging.getLogger("swarmd.node").error("seen")
    assert capsys.readouterr().err == "ERROR swarmd.node seen\n"
