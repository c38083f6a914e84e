"""Packed linear layers give what plain ones give; what cannot be packed stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from swarmd.core.span import Span
from swarmd.engine import load, packed, panels, probe
from swarmd.engine.packed import OneDnnLinear, PackedLinear
from swarmd.engine.panels import PanelEmbedding, PanelLinear
from swarmd.engine.stage import Batch, Segment, Stage
from tests.engine.architectures import Architecture
from tests.engine.sources import DirectorySource

needs_onednn = pytest.mark.skipif(not packed.has_onednn(), reason="oneDNN has no kernel here")


@pytest.fixture(params=[pytest.param(OneDnnLinear, marks=needs_onednn), PanelLinear])
def layout(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[PackedLinear]:
    kind: type[PackedLinear] = request.param
    monkeypatch.setattr(packed, "best_layout", lambda: kind)
    return kind


def linear(inside: int, outside: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(inside, outside, bias=bias, dtype=torch.bfloat16).requires_grad_(False)


SHAPES = [(48, 150), (33, 97), (512, 512), (1, 64), (300, 7)]


def test_every_machine_with_numba_packs() -> None:
    assert panels.kernel is None or panels.usable()
    assert packed.best_layout() is not None or panels.kernel is None


@needs_onednn
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inside", "outside"), SHAPES)
def test_the_bits_are_those_of_the_plain_layer(inside: int, outside: int, bias: bool) -> None:
    plain = linear(inside, outside, bias)
    layer = OneDnnLinear(plain)
    with torch.inference_mode():
        for count in (2, 3, 16, 33, 100):
            rows = torch.randn(1, count, inside, dtype=torch.bfloat16)
            assert torch.equal(layer(rows), plain(rows))
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.to_linear().weight, plain.weight)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inside", "outside"), SHAPES)
def test_panels_round_the_sum_in_float32_once(inside: int, outside: int, bias: bool) -> None:
    plain = linear(inside, outside, bias)
    layer = PanelLinear(plain)
    with torch.inference_mode():
        rows = torch.randn(1, 290, inside, dtype=torch.bfloat16)
        exact = functional.linear(
            rows.double(), plain.weight.double(), plain.bias.double() if bias else None
        )
        # Half a unit in the last of 8 bits, and what a sum in float32 loses where it cancels.
        limit = exact.abs() * 2.0**-8 + 1e-5
        assert ((layer(rows).double() - exact).abs() <= limit).all()
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.to_linear().weight, plain.weight)


@pytest.mark.parametrize("threads", [1, 2])
def test_no_bit_of_a_row_in_panels_depends_on_its_company(threads: int) -> None:
    layer = PanelLinear(linear(384, 1000, bias=True))
    before = torch.get_num_threads()
    try:
        with torch.inference_mode():
            torch.set_num_threads(1)
            rows = torch.randn(300, 384, dtype=torch.bfloat16)
            together = layer(rows)
            torch.set_num_threads(threads)
            for first, last in [(0, 1), (1, 3), (2, 7), (5, 11), (0, 17), (50, 300), (7, 7)]:
                assert torch.equal(layer(rows[first:last]), together[first:last])
    finally:
        torch.set_num_threads(before)


def test_what_is_no_number_stays_none() -> None:
    layer = PanelLinear(linear(64, 64))
    rows = torch.ones(4, 64, dtype=torch.bfloat16)
    rows[1, 5], rows[2, 5] = float("nan"), float("inf")
    with torch.inference_mode():
        result = layer(rows)
    assert result[1].isnan().all()
    assert not result[2].isfinite().any()
    assert result[0].isfinite().all()
    assert result[3].isfinite().all()


def test_a_kernel_that_is_wrong_on_this_machine_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = panels.kernel.multiply

    def one_input_short(*args: Any) -> None:
        *head, inside, outside, first, last = args
        real(*head, inside - 1, outside, first, last)

    panels.usable.cache_clear()
    monkeypatch.setattr(panels.kernel, "multiply", one_input_short)
    try:
        assert not panels.usable()
        assert "off by" in caplog.text
    finally:
        panels.usable.cache_clear()


def test_gradients_flow_through_to_the_rows(layout: type[PackedLinear]) -> None:
    plain = linear(32, 16, bias=True)
    layer = layout(plain)
    ours, theirs = (torch.ones(3, 32, dtype=torch.bfloat16, requires_grad=True) for _ in "ab")
    layer(ours).sum().backward()
    plain(theirs).sum().backward()
    assert ours.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


def saved(where: Path, keys: dict[str, Any]) -> DirectorySource:
    Architecture("llama", keys).build().save_pretrained(where)
    return DirectorySource(where)


def of_kind(stage: Stage, kind: type[nn.Module]) -> list[str]:
    """The layers of exactly this kind; PackedLinear stands for all its layouts."""
    return [
        name
        for name, module in stage.model.named_modules()
        if (isinstance(module, kind) if kind is PackedLinear else type(module) is kind)
    ]


def forward(stage: Stage) -> torch.Tensor:
    rows = probe.random_rows(stage, 37, seed=0)
    segments, every = (Segment(stage.new_cache(), 0, 37),), tuple(range(37))
    ids, hidden = (rows, None) if stage.is_first else (None, rows)
    return stage.forward(Batch(stage.span.start, 4, segments, ids, hidden, every))


def assert_alike(layout: type[PackedLinear], ours: torch.Tensor, plain: torch.Tensor) -> None:
    if layout is OneDnnLinear:
        assert torch.equal(ours, plain)
    else:
        assert (ours - plain).norm() / plain.norm() < 2e-2


def test_a_bf16_stage_is_packed_and_says_what_a_plain_one_says(
    tmp_path: Path, layout: type[PackedLinear], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path, {"tie_word_embeddings": False})
    stage = load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0)
    assert len(of_kind(stage, PackedLinear)) == 4 * 7 + 1
    assert not of_kind(stage, nn.Linear)
    monkeypatch.setattr(packed, "best_layout", lambda: None)
    plain = load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0)
    assert not of_kind(plain, PackedLinear)
    assert_alike(layout, forward(stage), forward(plain))


def test_a_float32_stage_is_not_packed(tmp_path: Path) -> None:
    stage = load.load_stage(saved(tmp_path, {}), Span(0, 4), dtype="float32", kv_memory=0)
    assert not of_kind(stage, PackedLinear)


def test_an_embedding_reads_its_rows_from_the_panels_of_its_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path, {"tie_word_embeddings": True})
    monkeypatch.setattr(packed, "best_layout", lambda: PanelLinear)
    stage = load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0)
    assert not of_kind(stage, nn.Linear)
    assert len(of_kind(stage, PanelEmbedding)) == 1
    large = [p for p in stage.model.parameters() if p.device.type == "cpu" and p.dim() == 2]
    assert large == []
    monkeypatch.setattr(packed, "best_layout", lambda: None)
    plain = load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0)
    ids = probe.random_rows(stage, 37, seed=0)
    ours, theirs = (s.model.get_input_embeddings()(ids) for s in (stage, plain))
    assert torch.equal(ours, theirs)
    assert_alike(PanelLinear, forward(stage), forward(plain))


def test_an_embedding_with_rules_of_its_own_is_left_alone(tmp_path: Path) -> None:
    embedding = nn.Embedding(40, 16, dtype=torch.bfloat16).requires_grad_(False)

    class Scaled(nn.Embedding):
        pass

    for other in (Scaled(40, 16), nn.Embedding(40, 16, max_norm=1.0)):
        model = Tied(other.to(torch.bfloat16).requires_grad_(False))
        packed.pack(model)
        assert model.embedding is other
        assert type(model.head) is nn.Linear
    model = Tied(embedding)
    assert packed.pack(model) == (packed.best_layout() is PanelLinear)


class Tied(nn.Module):
    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding: nn.Module = embedding
        self.head: nn.Module = nn.Linear(16, 40, bias=False, device="meta")
        self.head.weight = embedding.weight

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        return self.head


@needs_onednn
def test_a_head_that_shares_the_embedding_is_not_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path, {"tie_word_embeddings": True})
    monkeypatch.setattr(packed, "best_layout", lambda: OneDnnLinear)
    stage = load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0)
    assert of_kind(stage, nn.Linear) == ["lm_head"]
    head, embedding = stage.model.lm_head, stage.model.get_input_embeddings()
    assert head.weight.data_ptr() == embedding.weight.data_ptr()


def test_a_head_alone_is_packed_though_the_checkpoint_has_it_as_embedding(
    tmp_path: Path, layout: type[PackedLinear], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path, {"tie_word_embeddings": True})
    stage = load.load_stage(source, Span(2, 4), dtype="bfloat16", kv_memory=0)
    assert "lm_head" in of_kind(stage, PackedLinear)
    dense = [p for p in stage.model.parameters() if p.device.type == "cpu" and p.dim() == 2]
    assert dense == []
    monkeypatch.setattr(packed, "best_layout", lambda: None)
    plain = load.load_stage(source, Span(2, 4), dtype="bfloat16", kv_memory=0)
    assert_alike(layout, forward(stage), forward(plain))


def test_a_layer_whose_weights_are_read_becomes_plain_again(
    tmp_path: Path, layout: type[PackedLinear], monkeypatch: pytest.MonkeyPatch
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
    assert_alike(layout, forward(stage), wanted)
