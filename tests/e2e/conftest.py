"""Real daemons on loopback for the end-to-end tests: one swarm of six for most of them.

Two nodes hold each span, so that every hop of a route can be killed; `whole_swarm` starts those
again that a test has killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_swarm import READY_S, revive, wait_for_replicas
from forked import SERVER, forked

from swarmd.cli.demo import demo_model
from swarmd.cli.local_swarm import LocalSwarm
from swarmd.client import Client

SPANS = ("0:3", "0:3", "3:6", "3:6", "6:8", "6:8")
FLAGS = ("--threads", "1", "--kv-memory", "64MiB", "--chunk-size", "64")
METRICS = ("--metrics", "127.0.0.1:0")


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> Iterator[None]:
    """Started by who asks first; it ends after all that it has started."""
    yield
    SERVER.stop()


@pytest.fixture(scope="session", autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What nodes note down of models that are soon gone stays with the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("caches")))
        yield


@pytest.fixture(scope="session")
def model_dir() -> Path:
    """The model in the package: 8 blocks."""
    return demo_model()


@pytest.fixture(scope="session")
def swarm(model_dir: Path) -> Iterator[LocalSwarm]:
    """Six nodes in fp32, started once."""
    logs = os.environ.get("TEST_SWARM_DIR")
    flags = ("--dtype", "float32", *METRICS, *FLAGS)
    with LocalSwarm(
        str(model_dir), SPANS, flags=flags, directory=Path(logs) if logs else None, launch=forked
    ) as nodes:
        nodes.wait_ready(READY_S)
        wait_for_replicas(nodes)
        yield nodes


@pytest.fixture
def whole_swarm(swarm: LocalSwarm) -> LocalSwarm:
    """The same swarm with everybody alive."""
    revive(swarm)
    return swarm


@pytest.fixture
def client(whole_swarm: LocalSwarm) -> Iterator[Client]:
    """A client that knows all nodes."""
    with Client(whole_swarm.addresses, timeout=120.0) as one:
        yield one
