"""A hub on loopback with one chat model, and an empty home that points at it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_repo import write_chat_repo
from fetching import REPO
from hub_server import HubServer


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model in one safetensors file."""
    return write_chat_repo(tmp_path_factory.mktemp("single") / "Chat-0.5B")


@pytest.fixture(scope="session")
def sharded_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in three files."""
    return write_chat_repo(tmp_path_factory.mktemp("sharded") / "Chat-0.5B", shards=3)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "hf-home"


@pytest.fixture
def hub(home: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub that holds `model_dir` as REPO; the environment points at it."""
    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with HubServer() as server:
        for name, value in server.environ(home).items():
            monkeypatch.setenv(name, value)
        server.add_repo(REPO, model_dir)
        yield server
