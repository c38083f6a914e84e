"""Packed linear layers give the bits of plain ones; what cannot be packed stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from swarmd.core.span import Span
from swarmd.engine import load, packed, probe
from swarmd.engine.packed import PackedLinear
from swarmd.engine.stage import Batch, Segment, Stage
from tests.engine.architectures import Architecture
from tests.engine.sources import DirectorySource

pytestmark = pytest.mark.skipif(not packed.can_pack(), reason="no bfloat16 kernel on this machine")


def linear(inside: int, outside: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inside, outside, bias=bias, dtype=torch.bfloat16).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inside", "outside"), [(48, 150), (33, 97), (512, 512), (1, 64)])
def test_the_bits_are_those_of_the_plain_layer(inside: int, outside: int, bias: bool) -> None:
    plain = linear(inside, outside, bias)
    layer = PackedLinear(plain)
    with torch.inference_mode():
        for count in (2, 3, 16, 33, 100):
            rows = torch.randn(1, count, inside, dtype=torch.bfloat16)
            assert torch.equal(layer(rows), plain(rows))
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.to_linear().weight, plain.weight)


def test_gradients_flow_through_to_the_rows() -> None:
    plain = linear(32, 16, bias=True)
    layer = PackedLinear(plain)
    ours, theirs = (torch.ones(3, 32, dtype=torch.bfloat16, requires_grad=True) for _ in "ab")
    layer(ours).sum().backward()
    plain(theirs).sum().backward()
    assert ours.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def saved(where: Path, keys: dict[str, Any]) -> DirectorySource:
    Architecture("llama", keys).build().save_pretrained(where)
    return DirectorySource(where)


def of_kind(stage: Stage, kind: type[nn.Module]) -> list[str]:
    return [name for name, module in stage.model.named_modules() if type(module) is kind]


def forward(stage: Stage) -> torch.Tensor:
    rows = probe.random_rows(stage, 37, seed=0)
    segments, every = (Segment(stage.new_cache(), 0, 37),), tuple(range(37))
    ids, hidden = (rows, None) if stage.is_first else (None, rows)
    return stage.forward(Batch(stage.span.start, 4, segments, ids, hidden, every))


def test_a_bf16_stage_is_packed_and_says_what_a_plain_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path, {"tie_word_embeddings": False})
    stage = load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0)
    assert len(of_kind(stage, PackedLinear)) == 4 * 7 + 1
    assert not of_kind(stage, nn.Linear)
    monkeypatch.setattr(packed, "can_pack", lambda: False)
    plain = load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0)
    assert not of_kind(plain, PackedLinear)
    assert torch.equal(forward(stage), forward(plain))


def test_a_float32_stage_is_not_packed(tmp_path: Path) -> None:
    stage = load.load_stage(saved(tmp_path, {}), Span(0, 4), dtype="float32", kv_memory=0)
    assert not of_kind(stage, PackedLinear)


def test_a_head_that_shares_the_embedding_is_not_doubled(tmp_path: Path) -> None:
    source = saved(tmp_path, {"tie_word_embeddings": True})
    stage = load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0)
    assert of_kind(stage, nn.Linear) == ["lm_head"]
    head, embedding = stage.model.lm_head, stage.model.get_input_embeddings()
    assert head.weight.data_ptr() == embedding.weight.data_ptr()


def test_a_head_alone_is_packed_though_the_checkpoint_has_it_as_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path, {"tie_word_embeddings": True})
    stage = load.load_stage(source, Span(2, 4), dtype="bfloat16", kv_memory=0)
    assert "lm_head" in of_kind(stage, PackedLinear)
    dense = [p for p in stage.model.parameters() if p.device.type == "cpu" and p.dim() == 2]
    assert dense == []
    monkeypatch.setattr(packed, "can_pack", lambda: False)
    plain = load.load_stage(source, Span(2, 4), dtype="bfloat16", kv_memory=0)
    assert torch.equal(forward(stage), forward(plain))


def test_a_layer_whose_weights_are_read_becomes_plain_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path, {})
    from transformers.models.llama import modeling_llama

    def reading(self: Any, x: torch.Tensor) -> torch.Tensor:
        gate = functional.linear(x, self.gate_proj.weight)
        return self.down_proj(self.act_fn(gate) * self.up_proj(x))

    wanted = forward(load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0))
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", reading)
    stage = load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0)
    assert [name.split(".")[-1] for name in of_kind(stage, nn.Linear)] == ["gate_proj"] * 4
    assert len(of_kind(stage, PackedLinear)) >= 4 * 6
    assert torch.equal(forward(stage), wanted)
