"""A directory's checkpoint: what is read, and what a stranger's directory may not do."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from fetching import WEIGHTS, assert_same

from swarmd.core.errors import ModelError, WeightsError
from swarmd.engine.checkpoint import open_checkpoint, open_directory
from swarmd.engine.repo_files import is_plain_file, is_small_file
from swarmd.engine.source import Source

INDEX = "model.safetensors.index.json"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def copy(tmp_path: Path, model_dir: Path) -> Path:
    """The single-file model, to be damaged."""
    return Path(shutil.copytree(model_dir, tmp_path / "copy"))


@pytest.fixture
def sharded(tmp_path: Path, sharded_dir: Path) -> Path:
    """The model in three files, to be damaged."""
    return Path(shutil.copytree(sharded_dir, tmp_path / "sharded"))


def test_a_single_file_is_read(model_dir: Path, cache: Path) -> None:
    source: Source = open_checkpoint(str(model_dir), cache_dir=cache)
    names = list(source.tensors())
    source.fetch(names)
    assert source.name == "Chat-0.5B"
    assert source.files_dir == model_dir
    assert source.config_dict()["model_type"] == "qwen2"
    assert_same(source, names, [model_dir / WEIGHTS])


def test_shards_are_read_through_the_index(sharded_dir: Path, cache: Path) -> None:
    checkpoint = open_checkpoint(str(sharded_dir), cache_dir=cache)
    names = list(checkpoint.tensors())
    assert len(names) == len(checkpoint.tensors()) == 6 * 12 + 2
    assert_same(checkpoint, names, sharded_dir.glob("*.safetensors"))


def test_a_snapshot_of_links_is_read(model_dir: Path, tmp_path: Path, cache: Path) -> None:
    snapshot = tmp_path / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "blobs").mkdir()
    for index, path in enumerate(model_dir.iterdir()):
        shutil.copy(path, tmp_path / "blobs" / str(index))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(index)))
    checkpoint = open_checkpoint(str(snapshot), cache_dir=cache)
    assert_same(checkpoint, checkpoint.tensors(), [model_dir / WEIGHTS])
    assert checkpoint.digest == open_checkpoint(str(model_dir), cache_dir=cache).digest


def test_a_tensor_is_its_own_memory(copy: Path, cache: Path) -> None:
    checkpoint = open_checkpoint(str(copy), cache_dir=cache)
    before = (copy / WEIGHTS).read_bytes()
    checkpoint.read("model.norm.weight").zero_()
    assert (copy / WEIGHTS).read_bytes() == before
    assert checkpoint.read("model.norm.weight").count_nonzero() == 128


def test_config_is_a_fresh_copy(model_dir: Path, cache: Path) -> None:
    checkpoint = open_checkpoint(str(model_dir), cache_dir=cache)
    checkpoint.config_dict()["model_type"] = "other"
    assert checkpoint.config_dict()["model_type"] == "qwen2"


def test_a_truncated_file_is_refused_with_both_sizes(copy: Path, cache: Path) -> None:
    size = (copy / WEIGHTS).stat().st_size
    with (copy / WEIGHTS).open("r+b") as file:
        file.truncate(size - 100)
    checkpoint = open_checkpoint(str(copy), cache_dir=cache)
    with pytest.raises(
        WeightsError, match=f"truncated: .* {size} bytes, the file has {size - 100}"
    ):
        checkpoint.tensors()


def test_a_file_that_shrinks_after_it_was_opened_is_an_error_and_no_crash(
    copy: Path, cache: Path
) -> None:
    checkpoint = open_checkpoint(str(copy), cache_dir=cache)
    names = list(checkpoint.tensors())
    with (copy / WEIGHTS).open("r+b") as file:
        file.truncate(100_000)
    last = max(names, key=lambda name: checkpoint.entry(name).end)
    with pytest.raises(WeightsError, match="truncated: 100000 bytes"):
        checkpoint.read(last)


def test_missing_shards_are_named(sharded: Path, cache: Path) -> None:
    (sharded / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"lacks 1 of 3 files: model-00002-of-00003\.safetens"):
        open_checkpoint(str(sharded), cache_dir=cache)


def test_missing_tensors_are_named(copy: Path, cache: Path) -> None:
    checkpoint = open_checkpoint(str(copy), cache_dir=cache)
    with pytest.raises(WeightsError, match=r"lacks 2 of 3 tensors: lm_head\.weight, other"):
        checkpoint.fetch(["model.norm.weight", "lm_head.weight", "other"])
    with pytest.raises(WeightsError, match=r"no tensor 'lm_head\.weight'"):
        checkpoint.read("lm_head.weight")


def test_an_index_that_lies_is_refused(sharded: Path, cache: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["invented"] = "model-00001-of-00003.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    checkpoint = open_checkpoint(str(sharded), cache_dir=cache)
    with pytest.raises(WeightsError, match=r"'invented' into model-00001.*does not list it"):
        checkpoint.fetch(["invented"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 3}}', "[" * 100_000]
)
def test_a_damaged_index_is_refused(sharded: Path, cache: Path, text: str) -> None:
    (sharded / INDEX).write_text(text)
    with pytest.raises(WeightsError, match="index"):
        open_checkpoint(str(sharded), cache_dir=cache)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/x.safetensors",
        "a/../x.safetensors",
        "x.bin",
        "a\\x.safetensors",
    ],
)
def test_an_index_names_only_safetensors_inside_the_directory(
    sharded: Path, cache: Path, name: str
) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = name
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"model\.norm\.weight.*refused"):
        open_checkpoint(str(sharded), cache_dir=cache)


@pytest.mark.parametrize("text", ["", "[]", "not json"])
def test_a_damaged_config_is_refused(copy: Path, cache: Path, text: str) -> None:
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        open_checkpoint(str(copy), cache_dir=cache)


def test_what_is_not_a_model_is_refused_by_name(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        open_checkpoint(str(tmp_path))
    with pytest.raises(ModelError, match="is a file: give the directory"):
        open_checkpoint(str(copy / WEIGHTS))
    with pytest.raises(ModelError, match="revision is for models of the hub"):
        open_checkpoint(str(copy), revision="main")
    for name in ("/no/such/directory", "./nothing", "a/b/c", "Org/..", "", "-x", "https://hub/x"):
        with pytest.raises(ModelError, match=r"neither a directory .* nor a model's name"):
            open_checkpoint(name)


def test_a_directory_without_weights_is_refused(copy: Path, cache: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.safetensors\.ind"):
        open_checkpoint(str(copy), cache_dir=cache)


class Bomb:
    """Pickled, it creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_pickles_are_never_loaded(copy: Path, cache: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "exploded"
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin"):
        (copy / name).write_bytes(pickle.dumps(Bomb(bomb)))
    checkpoint = open_checkpoint(str(copy), cache_dir=cache)
    for name in checkpoint.tensors():
        checkpoint.read(name)
    (copy / WEIGHTS).write_bytes(pickle.dumps(Bomb(bomb)))
    with pytest.raises(WeightsError):
        open_checkpoint(str(copy), cache_dir=cache).tensors()
    (copy / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"pickle files \(model\.pt, pytorch_model\.bin\)"):
        open_checkpoint(str(copy), cache_dir=cache)
    assert not bomb.exists()


def test_a_directory_may_be_read_only(model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    checkpoint = open_directory(model_dir, cache_dir=tmp_path / "file")
    assert checkpoint.digest == open_directory(model_dir, cache_dir=tmp_path / "cache").digest
    assert checkpoint.read("model.norm.weight").dtype is torch.bfloat16


def test_names_that_leave_a_repository() -> None:
    good = ["a", "a.json", "a/b.json", "additional_chat_templates/x.jinja", "..a", "a..b"]
    bad = [
        "",
        "/a",
        "../a",
        "a/..",
        "a/../b",
        "./a",
        "a//b",
        "a/",
        "C:a",
        "a\\b",
        "a\0b",
        "a\nb",
        ".",
    ]
    assert [name for name in good if not is_plain_file(name)] == []
    assert [name for name in bad if is_plain_file(name)] == []


def test_small_files_are_those_that_a_node_needs() -> None:
    small = """config.json generation_config.json tokenizer.json tokenizer_config.json vocab.json
        merges.txt special_tokens_map.json added_tokens.json tokenizer.model spiece.model vocab.txt
        chat_template.jinja chat_template.json additional_chat_templates/rag.jinja qwen.tiktoken
        model.safetensors.index.json"""
    large = """model.safetensors pytorch_model.bin README.md model.gguf onnx/model.onnx LICENSE
        modeling_custom.py tokenization_custom.py training_args.bin pytorch_model.bin.index.json
        figures/a.png original/tokenizer.model"""
    assert [name for name in small.split() if not is_small_file(name)] == []
    assert [name for name in large.split() if is_small_file(name)] == []
