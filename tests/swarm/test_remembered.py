"""What a node remembers survives it, stays small, and cannot hurt it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from swarm_peers import NOW

from swarmd.core.errors import ConfigError
from swarmd.swarm.remembered import MAX_REMEMBERED, PEERS_FILE, RememberedPeers

DHT = "/ip4/10.0.0.1/tcp/7421/p2p/12D3KooWSePQjKfEyuv8Vf31NAkL9aAfQdoDRJjh3VjeL7J86BcJ"


def test_known_peers_survive_a_restart(tmp_path: Path) -> None:
    known = RememberedPeers().seen(NOW, grpc=["a:1"], directory=[DHT]).seen(NOW + 5, grpc=["b:2"])
    known.save(tmp_path / "state")
    assert RememberedPeers.load(tmp_path / "state") == known
    assert list(known.grpc) == ["b:2", "a:1"]
    assert [p.name for p in (tmp_path / "state").iterdir()] == [PEERS_FILE]


def test_a_node_that_never_ran_remembers_nobody(tmp_path: Path) -> None:
    assert RememberedPeers.load(tmp_path / "nowhere") == RememberedPeers()


def test_the_oldest_are_forgotten_first() -> None:
    known = RememberedPeers()
    for number in range(MAX_REMEMBERED + 10):
        known = known.seen(NOW + number, grpc=[f"h:{number}"])
    assert len(known.grpc) == MAX_REMEMBERED
    assert "h:9" not in known.grpc
    assert "h:10" in known.grpc


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"grpc": {}}',
        b'{"grpc": [], "dht": {}}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"grpc": {"a:1": 1' + b"0" * 400 + b'}, "dht": {}}',
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    (tmp_path / PEERS_FILE).write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert RememberedPeers.load(tmp_path) == RememberedPeers()
    assert "unreadable and ignored" in caplog.text


def test_strange_entries_are_passed_over(tmp_path: Path) -> None:
    entries = {"ok:1": 5, "": 1, "x" * 513: 1, "bad\n:1": 1, "when:1": "now", "nan:1": float("nan")}
    (tmp_path / PEERS_FILE).write_text(json.dumps({"grpc": entries, "dht": {}}))
    assert RememberedPeers.load(tmp_path).grpc == {"ok:1": 5.0}


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RememberedPeers().seen(NOW, grpc=["a:1"]).save(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        RememberedPeers().save(tmp_path)
    monkeypatch.undo()
    assert RememberedPeers.load(tmp_path).grpc == {"a:1": NOW}
    assert [p.name for p in tmp_path.iterdir()] == [PEERS_FILE]
