"""Loading a span: what is read, what is not, and what it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from swarmd.core.errors import ModelError, WeightsError
from swarmd.core.span import Span
from swarmd.engine.block_names import span_tensors
from swarmd.engine.layout import find_layout, parse_config
from swarmd.engine.load import estimate_span_bytes
from swarmd.engine.weights import load_span
from tests.engine.architectures import ARCHITECTURES, Architecture
from tests.engine.sources import DirectorySource

BY_NAME = {str(architecture): architecture for architecture in ARCHITECTURES}
CPU = torch.device("cpu")


def saved(name: str, where: Path, **keys: Any) -> tuple[PreTrainedModel, DirectorySource]:
    architecture = BY_NAME[name]
    model = Architecture(architecture.family, architecture.keys | keys).build()
    model.save_pretrained(where)
    return model, DirectorySource(where)


class Reconfigured(DirectorySource):
    """The same files with other values in the config."""

    def __init__(self, source: DirectorySource, **keys: Any) -> None:
        super().__init__(source.files_dir)
        self.was_read = source.was_read
        self._keys = keys

    def config_dict(self) -> dict[str, Any]:
        return super().config_dict() | self._keys


def load(
    source: DirectorySource, span: Span, dtype: torch.dtype = torch.float32
) -> torch.nn.Module:
    return load_span(source, parse_config(source.config_dict()), span, dtype, CPU)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "deepseek_v3", "mixtral", "bloom"])
@pytest.mark.parametrize("span", [Span(0, 1), Span(1, 3), Span(3, 4), Span(0, 4)], ids=str)
def test_a_span_has_its_own_weights_and_reads_no_others(
    name: str, span: Span, tmp_path: Path
) -> None:
    model, source = saved(name, tmp_path)
    layout = find_layout(parse_config(source.config_dict()))
    loaded = load(source, span)
    wanted = list(layout.blocks_of(model))[span.start : span.end]
    got = list(layout.blocks_of(loaded))
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        for (key, a), (other_key, b) in zip(
            one.state_dict().items(), other.state_dict().items(), strict=True
        ):
            assert key == other_key
            assert torch.equal(a, b)
    assert len(source.was_read) == len(set(source.was_read))
    read = sum(source.tensors()[tensor].nbytes for tensor in source.was_read)
    assert read == sum(p.nbytes for p in set(loaded.parameters())) + _buffers_in_files(loaded)
    assert read == estimate_span_bytes(source, span)


def _buffers_in_files(model: torch.nn.Module) -> int:
    kept = model.state_dict()
    return sum(buffer.nbytes for name, buffer in model.named_buffers() if name in kept)


def test_spans_together_read_every_tensor_of_an_untied_model_once(tmp_path: Path) -> None:
    _, source = saved("llama", tmp_path)
    for span in (Span(0, 2), Span(2, 3), Span(3, 4)):
        load(source, span)
    assert sorted(source.was_read) == sorted(source.tensors())


@pytest.mark.parametrize("name", ["llama_tied", "gemma", "gpt2", "opt"])
def test_tied_embeddings_are_there_where_they_are_needed(name: str, tmp_path: Path) -> None:
    model, source = saved(name, tmp_path)
    table = model.get_input_embeddings().weight
    first, middle, last = (load(source, span) for span in (Span(0, 1), Span(1, 3), Span(3, 4)))
    assert torch.equal(first.get_input_embeddings().weight, table)
    assert torch.equal(last.get_output_embeddings().weight, table)
    for part in (first, last):
        assert sum(p.shape == table.shape for p in set(part.parameters())) == 1
    assert not any(p.shape == table.shape for p in middle.parameters())
    both = load(source, Span(0, 4))
    assert both.get_input_embeddings().weight is both.get_output_embeddings().weight


def test_a_head_that_is_stored_although_it_is_tied_is_read_all_the_same(tmp_path: Path) -> None:
    model, _ = saved("llama_tied", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    last = load(DirectorySource(tmp_path), Span(2, 4))
    assert torch.equal(last.get_output_embeddings().weight, model.lm_head.weight)


def test_sharded_checkpoints_are_read_by_tensor(tmp_path: Path) -> None:
    model = BY_NAME["llama"].build()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = load(DirectorySource(tmp_path), Span(1, 3))
    assert torch.equal(
        loaded.model.layers[0].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_cast_and_computed_buffers_are_not_left_empty(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model, source = saved("llama", tmp_path)
    loaded = load(source, Span(1, 2), dtype)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert not any(p.is_meta for p in [*loaded.parameters(), *loaded.buffers()])
    assert torch.equal(loaded.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


def test_weights_can_be_trained_later(tmp_path: Path) -> None:
    _, source = saved("llama", tmp_path)
    for parameter in load(source, Span(0, 1)).parameters():
        assert not parameter.is_inference()
        assert not parameter.requires_grad


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    source = DirectorySource(tmp_path)
    load(source, Span(0, 2))
    with pytest.raises(WeightsError, match=r"1 tensors are missing.*mlp\.up_proj"):
        load(source, Span(2, 4))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 5)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"up_proj.*\(3, 5\)"):
        load(DirectorySource(tmp_path), Span(0, 2))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["num_hidden_layers"] = 9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="9 blocks"):
        load(DirectorySource(tmp_path), Span(0, 2))


@pytest.mark.parametrize("span", [Span(0, 2), Span(1, 3)], ids=str)
def test_a_checkpoint_with_more_blocks_than_its_config_says_is_refused(
    tmp_path: Path, span: Span
) -> None:
    _, source = saved("llama", tmp_path)
    shortened = Reconfigured(source, num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"says 3 blocks .*the checkpoint has 4"):
        load(shortened, span)
    with pytest.raises(ModelError, match="the checkpoint has 4"):
        estimate_span_bytes(shortened, span)
    assert source.was_read == []


@pytest.mark.parametrize(("predicting", "fits"), [(0, False), (1, True), (2, True)])
def test_blocks_that_predict_further_tokens_may_follow_where_the_config_says_so(
    tmp_path: Path, predicting: int, fits: bool
) -> None:
    model, source = saved("llama", tmp_path)
    shortened = Reconfigured(source, num_hidden_layers=3, num_nextn_predict_layers=predicting)
    if not fits:
        with pytest.raises(ModelError, match="num_nextn_predict_layers"):
            load(shortened, Span(1, 3))
        return
    loaded = load(shortened, Span(1, 3))
    assert len(loaded.model.layers) == 2
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert not [name for name in source.was_read if name.startswith("model.layers.3.")]


def test_a_span_beyond_the_model_is_refused(tmp_path: Path) -> None:
    _, source = saved("llama", tmp_path)
    with pytest.raises(ModelError, match="0:4"):
        load(source, Span(2, 6))


def test_names_are_renumbered_by_their_first_number_only() -> None:
    names = [f"model.layers.{block}.mlp.experts.{n}.w" for block in range(3) for n in range(4)]
    names += ["model.norm.weight", "model.layers.3.extra.weight", "vision.0.weight"]
    chosen = span_tensors(names, Span(1, 3), 3)
    assert chosen["model.layers.0.mlp.experts.3.w"] == "model.layers.1.mlp.experts.3.w"
    assert chosen["model.layers.1.mlp.experts.0.w"] == "model.layers.2.mlp.experts.0.w"
    assert chosen["model.norm.weight"] == "model.norm.weight"
    assert len(chosen) == 8 + 2
    assert "model.layers.3.extra.weight" not in chosen.values()


PEAK = """
import sys
from pathlib import Path
import torch
from swarmd.core.span import Span
from swarmd.engine.checkpoint import open_checkpoint
from swarmd.engine.layout import find_layout, parse_config
from swarmd.engine.weights import load_span

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

source = open_checkpoint(sys.argv[1])
config = parse_config(source.config_dict())
layout = find_layout(config)
Path("/proc/self/clear_refs").write_text("5")
before = memory("VmRSS")
span, dtype = Span(int(sys.argv[2]), int(sys.argv[3])), getattr(torch, sys.argv[4])
model = load_span(source, config, span, dtype, torch.device("cpu"), None, layout)
weights = sum(parameter.nbytes for parameter in model.parameters())
print(weights, memory("VmHWM") - before, memory("VmRSS") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("stored", "span"), [("float32", (0, 5)), ("bfloat16", (0, 5))])
def test_loading_never_holds_a_second_copy(
    stored: str, span: tuple[int, int], tmp_path: Path
) -> None:
    keys = {"hidden_size": 1024, "intermediate_size": 4096, "head_dim": 256, "vocab_size": 8192}
    model = Architecture("llama", keys | {"num_hidden_layers": 5}).build()
    model.to(getattr(torch, stored)).save_pretrained(tmp_path)
    command = [sys.executable, "-W", "ignore", "-c", PEAK, str(tmp_path)]
    command += [str(span[0]), str(span[1]), "bfloat16"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    weights, peak, after = (int(number) for number in done.stdout.split())
    lazily_imported = 64 << 20
    assert weights > 160 << 20
    assert after <= weights + lazily_imported
    assert peak <= weights * 1.25 + lazily_imported
