"""From files to a stage: choices that are made for the user, and refusals that say why."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
import torch
from transformers import CONFIG_MAPPING

from swarmd.core.errors import ConfigError, ModelError
from swarmd.core.frames import DType
from swarmd.core.span import Span
from swarmd.engine import load
from swarmd.engine.precision import precision_of
from swarmd.engine.tiles import LANES
from tests.engine.architectures import Architecture
from tests.engine.sources import DirectorySource

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DirectorySource:
    where = tmp_path_factory.mktemp("models") / "tiny"
    Architecture("llama").build().save_pretrained(where)
    return DirectorySource(where)


def test_a_stage_says_what_it_is(source: DirectorySource) -> None:
    stage = load.load_stage(source, Span(1, 4), dtype="bfloat16", kv_memory=12345, name="org/tiny")
    assert stage.info.name == "org/tiny"
    assert stage.info.digest == source.digest
    assert (stage.info.num_blocks, stage.info.hidden_size, stage.info.vocab_size) == (4, 48, 160)
    assert stage.info.max_model_len == 256
    assert (stage.is_first, stage.is_last) == (False, True)
    assert stage.span == Span(1, 4)
    assert stage.wire_dtype is DType.BFLOAT16
    assert stage.budget.total_bytes == 12345
    assert stage.kv_bytes_per_token == 3 * 2 * (12 + LANES) * 2
    assert stage.ragged
    assert stage.ragged_reason == ""
    assert stage.precision == precision_of(stage)


def test_the_models_own_name_is_used_unless_another_is_given(source: DirectorySource) -> None:
    assert load.load_stage(source, Span(0, 1), dtype="float32", kv_memory=0).info.name == "tiny"


def test_by_default_half_of_the_free_memory_is_for_kv(source: DirectorySource) -> None:
    free = psutil.virtual_memory().available
    stage = load.load_stage(source, Span(0, 1), dtype="float32")
    assert 0.2 * free < stage.budget.total_bytes < 0.6 * free


def test_threads_are_set(source: DirectorySource) -> None:
    before = torch.get_num_threads()
    try:
        load.load_stage(source, Span(0, 1), dtype="float32", kv_memory=0, threads=before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_one_core_is_left_to_the_network() -> None:
    assert 1 <= load.default_threads().count <= max(1, (psutil.cpu_count() or 1) - 1)


@pytest.mark.parametrize("device", ["gpu", "tpu:0", "cuda:99", "meta", "cpu:x"])
def test_devices_that_are_not_there_are_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=device):
        load.choose_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:1"])
def test_without_cuda_its_devices_are_refused_with_the_reason(device: str) -> None:
    with pytest.raises(ConfigError, match=rf"'{device}'.*(has no CUDA|torch finds no device)"):
        load.choose_device(device)


def test_auto_takes_a_device_that_is_there() -> None:
    assert load.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert load.choose_device("cpu") == CPU


def test_an_unknown_dtype_is_refused_with_the_choices() -> None:
    config = CONFIG_MAPPING["llama"]()
    with pytest.raises(ConfigError, match=r"auto, float32, bfloat16, float16"):
        load.choose_dtype("int3", CPU, config)


@pytest.mark.parametrize(("has_bf16", "wanted"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_dtype_is_what_the_cpu_is_fast_in(
    has_bf16: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "cpu_has_bf16", lambda: has_bf16)
    dtype, reason = load.choose_dtype("auto", CPU, CONFIG_MAPPING["llama"]())
    assert dtype == wanted
    assert "CPU" in reason


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16)],
)
def test_a_dtype_that_is_asked_for_is_used(
    dtype: str, wanted: torch.dtype, source: DirectorySource
) -> None:
    stage = load.load_stage(source, Span(0, 2), dtype=dtype, kv_memory=0)
    assert stage.dtype == wanted
    assert {parameter.dtype for parameter in stage.model.parameters()} == {wanted}


def test_a_shorter_model_length_is_taken_and_a_longer_refused(source: DirectorySource) -> None:
    stage = load.load_stage(source, Span(0, 1), dtype="float32", kv_memory=0, max_model_len=100)
    assert stage.info.max_model_len == 100
    for length in (0, 257):
        with pytest.raises(ModelError, match=f"max_model_len {length}.*256"):
            load.load_stage(source, Span(0, 1), dtype="float32", max_model_len=length)


@pytest.mark.parametrize(
    ("eos", "wanted"), [(None, ()), (7, (7,)), ([7, 9], (7, 9))], ids=["none", "one", "several"]
)
def test_end_of_sequence_ids_come_from_the_config(
    eos: object, wanted: tuple[int, ...], source: DirectorySource, tmp_path: Path
) -> None:
    for file in source.files_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").unlink(missing_ok=True)
    config = source.config_dict() | {"eos_token_id": eos}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stage = load.load_stage(DirectorySource(tmp_path), Span(0, 1), dtype="float32", kv_memory=0)
    assert stage.info.eos_token_ids == wanted


def test_an_estimate_counts_what_the_span_will_take(source: DirectorySource) -> None:
    for span in (Span(0, 1), Span(1, 3), Span(0, 4)):
        stage = load.load_stage(source, span, dtype="float32", kv_memory=0)
        taken = sum(parameter.nbytes for parameter in stage.model.parameters())
        assert load.estimate_span_bytes(source, span) == taken
        assert load.estimate_span_bytes(source, span, torch.bfloat16) * 2 == taken


def test_nothing_is_read_of_a_model_that_cannot_be_split(source: DirectorySource) -> None:
    class Unsplittable(DirectorySource):
        def config_dict(self) -> dict[str, object]:
            return {"model_type": "rwkv"}

    refused = Unsplittable(source.files_dir)
    with pytest.raises(ModelError, match="rwkv"):
        load.load_stage(refused, Span(0, 1))
    assert refused.was_read == []


def test_progress_reaches_its_end(source: DirectorySource) -> None:
    seen: list[tuple[int, int, str]] = []
    load.load_stage(
        source, Span(0, 2), dtype="float32", kv_memory=0, progress=lambda *s: seen.append(s)
    )
    assert seen == sorted(seen)
    total = load.estimate_span_bytes(source, Span(0, 2))
    assert seen[-1] == (total, total, "load blocks 0:2")
