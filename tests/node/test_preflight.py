"""Before a node starts: ports that are taken, and state directories that are not its own."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from swarmd.core.config import NodeConfig
from swarmd.core.errors import ConfigError
from swarmd.node import preflight
from swarmd.node.preflight import cleared


def config(state_dir: Path, **addresses: str) -> NodeConfig:
    free = {"listen": "127.0.0.1:0", "dht_listen": "127.0.0.1:0"}
    return NodeConfig(model="m", state_dir=state_dir, **(free | addresses))


@pytest.fixture
def taken() -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock, f"127.0.0.1:{sock.getsockname()[1]}"


def refusal(of: NodeConfig) -> str:
    with pytest.raises(ConfigError) as failure, cleared(of):
        pass
    return str(failure.value)


def test_a_port_in_use_is_named_with_the_flag_that_helps(
    tmp_path: Path, taken: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "DIRECTORY_GRACE_S", 0.0)
    reason = f"cannot listen on {taken[1]}: Address already in use; choose another one with"
    assert refusal(config(tmp_path, listen=taken[1])) == f"{reason} --listen"
    assert refusal(config(tmp_path, dht_listen=taken[1])) == f"{reason} --dht-listen"
    assert refusal(config(tmp_path, metrics=taken[1])) == f"{reason} --metrics"


def test_the_directory_of_a_node_that_was_killed_may_take_a_moment(
    tmp_path: Path, taken: tuple[socket.socket, str]
) -> None:
    closing = threading.Timer(0.3, taken[0].close)
    closing.start()
    with cleared(config(tmp_path, dht_listen=taken[1])):
        assert taken[0].fileno() == -1


def test_a_host_that_is_not_this_machine_is_named(tmp_path: Path) -> None:
    assert "192.0.2.1:7420" in refusal(config(tmp_path, listen="192.0.2.1:7420"))
    assert "no-such-host.invalid:1" in refusal(config(tmp_path, listen="no-such-host.invalid:1"))


def test_a_checked_port_can_be_listened_on_at_once(
    tmp_path: Path, taken: tuple[socket.socket, str]
) -> None:
    taken[0].close()
    host, port = taken[1].split(":")
    with cleared(config(tmp_path, listen=taken[1])), socket.create_server((host, int(port))):
        pass


def test_a_state_directory_has_one_node(tmp_path: Path) -> None:
    state = tmp_path / "deep" / "state"
    with ExitStack() as running:
        running.enter_context(cleared(config(state)))
        said = refusal(config(state))
        assert f"{state} is in use by the node with process id {os.getpid()};" in said
        assert "--state-dir" in said
    with cleared(config(state)):
        assert state.stat().st_mode & 0o077 == 0


def test_a_state_directory_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert refusal(config(file)).startswith(f"state directory {file}: ")
    assert refusal(config(file / "below")).startswith(f"state directory {file / 'below'}: ")


def test_a_full_disk_does_not_keep_a_node_from_holding_its_directory(tmp_path: Path) -> None:
    (tmp_path / preflight.LOCK_FILE).symlink_to("/dev/full")
    with cleared(config(tmp_path)):
        assert "is in use by the node" in refusal(config(tmp_path))
