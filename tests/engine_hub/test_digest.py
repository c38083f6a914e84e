"""One digest for one model, wherever its files lie; a file is hashed once."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from chat_repo import write_chat_repo
from fetching import REPO, open_exact
from hub_server import HubServer

from swarmd.engine.checkpoint import open_checkpoint
from swarmd.engine.digest import HashCache, model_digest

CONFIG = {"model_type": "x", "hidden_size": 8, "text_config": {"layers": 2, "dtype": "float16"}}
FILES = {"model.safetensors": "0" * 64}


def test_a_copy_in_a_directory_and_every_span_from_the_hub_agree(
    hub: HubServer, model_dir: Path, tmp_path: Path
) -> None:
    local = open_checkpoint(str(model_dir), cache_dir=tmp_path / "cache").digest
    untouched = open_exact(REPO)
    assert untouched.digest == local
    assert hub.sent("model.safetensors") == 0  # the hub knows the hash of a file
    untouched.fetch(["model.norm.weight"])
    assert open_exact(REPO).digest == local


def test_shards_agree_as_well(hub: HubServer, sharded_dir: Path, tmp_path: Path) -> None:
    hub.add_repo("Org/Sharded", sharded_dir)
    local = open_checkpoint(str(sharded_dir), cache_dir=tmp_path / "cache").digest
    assert open_exact("Org/Sharded").digest == local


def test_other_weights_have_another_digest(model_dir: Path, tmp_path: Path) -> None:
    other = write_chat_repo(tmp_path / "other", seed=1)
    digests = {open_checkpoint(str(d), cache_dir=tmp_path / "c").digest for d in (model_dir, other)}
    assert len(digests) == 2


def test_what_saving_rewrites_does_not_count() -> None:
    noise = {"transformers_version": "5", "_name_or_path": "/home/x", "torch_dtype": "bfloat16"}
    nested = {**CONFIG, "text_config": {"dtype": "float32", "layers": 2}}
    assert model_digest(CONFIG | noise, FILES) == model_digest(nested, FILES)


@pytest.mark.parametrize("change", [{"hidden_size": 9}, {"text_config": {"layers": 3}}, {"new": 1}])
def test_what_changes_the_mathematics_counts(change: dict[str, object]) -> None:
    assert model_digest(CONFIG | change, FILES) != model_digest(CONFIG, FILES)
    assert model_digest(CONFIG, {"model.safetensors": "1" * 64}) != model_digest(CONFIG, FILES)
    assert model_digest(CONFIG, {"other.safetensors": "0" * 64}) != model_digest(CONFIG, FILES)


def test_a_file_is_hashed_once_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    cache = HashCache(tmp_path / "cache" / "hashes.json")
    first = hashlib.sha256(b"first").hexdigest()
    steps: list[tuple[int, int, str]] = []
    assert cache.sha256(path, lambda *step: steps.append(step)) == first
    assert steps == [(5, 5, "hash weights")]
    assert HashCache(tmp_path / "cache" / "hashes.json").sha256(path, pytest.fail) == first

    stat = path.stat()
    path.write_bytes(b"other")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert cache.sha256(path) == hashlib.sha256(b"other").hexdigest()


@pytest.mark.parametrize("content", ["", "[]", "nonsense", "{}", '{"x": 3}'])
def test_a_damaged_hash_cache_is_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"first")
    (tmp_path / "hashes.json").write_text(content)
    cache = HashCache(tmp_path / "hashes.json")
    first = hashlib.sha256(b"first").hexdigest()
    assert cache.sha256(path) == first
    assert list(json.loads((tmp_path / "hashes.json").read_text()).values()) == [first]
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
