"""The probe at load: what it must find, and that nothing slips by it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from swarmd.core.errors import ModelError
from swarmd.core.span import Span
from swarmd.engine import attention, load, probe, runners, tile_attention
from swarmd.engine.module_state import ModuleState
from swarmd.engine.packed import PackedLinear
from swarmd.engine.stage import Stage
from tests.engine import exactness
from tests.engine.architectures import ARCHITECTURES, Architecture
from tests.engine.sources import DirectorySource

BY_NAME = {str(architecture): architecture for architecture in ARCHITECTURES}

ROPE: dict[str, Any] = {"rope_theta": 10000.0, "original_max_position_embeddings": 64}


def saved(architecture: Architecture, where: Path) -> DirectorySource:
    architecture.build().save_pretrained(where)
    return DirectorySource(where)


@pytest.fixture
def sessions_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention that takes the whole row for one sequence, as a family's own would."""

    def tampered(
        module: Any, query: Any, key: Any, value: Any, _: Any, scaling: Any = None, **__: Any
    ) -> Any:
        context = attention.current()
        context.calls.append(module.layer_idx)
        for segment in context.segments:
            rows = slice(segment.start, segment.start + segment.length)
            store = segment.cache.blocks[context.block_offset + module.layer_idx]
            store.write(key[0, :, rows], value[0, :, rows], segment.position)
        stores = [s.cache.blocks[context.block_offset + module.layer_idx] for s in context.segments]
        ends = [segment.position + segment.length for segment in context.segments]
        held = [store.read(0, end) for store, end in zip(stores, ends, strict=True)]
        keys, values = torch.cat([k for k, _ in held], 1), torch.cat([v for _, v in held], 1)
        mask = torch.zeros(query.shape[2], keys.shape[1])
        start = 0
        for segment, end in zip(context.segments, ends, strict=True):
            rows = slice(segment.start, segment.start + segment.length)
            own = attention.causal_mask(segment.position, segment.length, 0, 0, mask)
            mask[rows, start : start + end] = own
            start += end
        out = functional.scaled_dot_product_attention(
            query, keys[None], values[None], attn_mask=mask, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2), None

    monkeypatch.setattr(attention, "ragged_attention", tampered)
    yield
    monkeypatch.undo()
    attention.register()


@pytest.mark.usefixtures("sessions_that_see_each_other")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sessions_that_see_each_other_are_found_by_the_probe(dtype: str, tmp_path: Path) -> None:
    source = saved(BY_NAME["llama"], tmp_path)
    for span in (Span(0, 4), Span(0, 1), Span(1, 3), Span(3, 4)):
        stage = untested(source, span, dtype=dtype)
        assert "differs" in probe.why_not_ragged(stage), span


@pytest.mark.usefixtures("sessions_that_see_each_other")
def test_sessions_that_see_each_other_turn_the_exactness_test_red() -> None:
    case = exactness.case(BY_NAME["llama"])
    stages = [untested(case.source, Span(0, 2)), untested(case.source, Span(2, 4))]
    prompts = [ids[: exactness.PROMPT] for ids in case.ids]
    alone = exactness.run_one(stages, prompts[0])
    exactness.assert_as_generated(alone, case.ids[0], case.logits[0])
    together = exactness.run_together(stages, prompts)
    for number in range(1, exactness.SESSIONS):
        with pytest.raises(AssertionError):
            exactness.assert_as_generated(together[number], case.ids[number], case.logits[number])


def untested(
    source: DirectorySource,
    span: Span,
    model: torch.nn.Module | None = None,
    dtype: str = "float32",
) -> Stage:
    """Load a stage and have it share forwards whatever the probe thinks of that."""
    made = load.load_stage(source, span, dtype=dtype, kv_memory=0)
    return Stage(model or made.model, made.layout, span, made.info, made.dtype, made.device)


@pytest.mark.parametrize(
    ("rope", "ragged"),
    [
        ({"rope_type": "default"}, True),
        ({"rope_type": "linear", "factor": 4.0}, True),
        ({"rope_type": "yarn", "factor": 4.0}, True),
        (
            {
                "rope_type": "llama3",
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
            True,
        ),
        ({"rope_type": "dynamic", "factor": 4.0}, False),
        ({"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [3.0] * 6}, False),
    ],
    ids=lambda value: value["rope_type"] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_positions_that_depend_on_the_row_are_found(
    rope: dict[str, Any], ragged: bool, dtype: str, tmp_path: Path
) -> None:
    # Dynamic scaling begins at the model's own length: longer ones are not served by themselves.
    length = 256 if ragged else 64
    keys = {"rope_parameters": ROPE | rope, "max_position_embeddings": length}
    source = saved(Architecture("llama", keys), tmp_path)
    for span in (Span(0, 2), Span(1, 3), Span(3, 4)):
        stage = untested(source, span, dtype=dtype)
        stage.info = exactness.with_length(stage.info, 256)
        load.examine(stage)
        assert stage.ragged == ragged
        assert ragged or "depend on the row" in stage.ragged_reason


def test_positions_that_would_change_their_meaning_are_not_served_unasked(tmp_path: Path) -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 6, "long_factor": [3.0] * 6}
    source = saved(Architecture("llama", {"rope_parameters": ROPE | rope}), tmp_path)
    stage = load.load_stage(source, Span(1, 3), dtype="float32", kv_memory=0)
    assert stage.info.max_model_len == 64
    assert stage.ragged
    stage = load.load_stage(source, Span(1, 3), dtype="float32", kv_memory=0, max_model_len=256)
    assert stage.info.max_model_len == 256
    assert not stage.ragged


def test_a_longer_session_does_not_stretch_the_positions_of_a_shorter(tmp_path: Path) -> None:
    """Dynamic scaling remembers the longest position seen: not across sessions."""
    architecture = Architecture(
        "llama",
        {
            "rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 4.0},
            "max_position_embeddings": 64,
        },
        spread=1.5,
    )
    model = architecture.build()
    model.save_pretrained(tmp_path)
    stage = untested(DirectorySource(tmp_path), Span(0, 4))
    stage.info = exactness.with_length(stage.info, 256)
    load.examine(stage)
    prompts = [torch.randint(2, 150, (n,)).tolist() for n in (90, 70, 100, 20)]
    for session, prompt in zip(
        exactness.run_together([stage], prompts, chunks=(100,)), prompts, strict=True
    ):
        # A fresh one each time: within one process, transformers itself carries it over.
        fresh = copy.deepcopy(model)
        made = fresh.generate(torch.tensor([prompt]), max_new_tokens=exactness.NEW, do_sample=False)
        assert session.ids == made[0].tolist()


@pytest.mark.parametrize("name", ["bloom", "gptj", "falcon", "gpt_neo"])
def test_a_family_with_attention_of_its_own_is_found(name: str) -> None:
    stage = exactness.case(BY_NAME[name]).stage(Span(0, 4))
    assert not stage.ragged
    assert stage.ragged_reason


def test_a_mask_of_its_own_is_found_without_a_long_sequence() -> None:
    stage = exactness.case(BY_NAME["llama4_text"]).stage(Span(0, 4))
    assert "in a way of its own" in stage.ragged_reason


def test_sliding_windows_as_long_as_real_ones_are_understood(tmp_path: Path) -> None:
    source = saved(Architecture("mistral", {"sliding_window": 4096}), tmp_path)
    assert load.load_stage(source, Span(0, 4), dtype="float32", kv_memory=0).ragged


def test_a_window_that_attention_never_hears_of_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 1}
    source = saved(Architecture("qwen2", keys), tmp_path)
    stage = load.load_stage(source, Span(1, 3), dtype="float32", kv_memory=0)
    assert stage.ragged
    for block in stage.layout.blocks_of(stage.model):
        monkeypatch.setattr(block.self_attn, "sliding_window", None)
    assert "way of its own" in probe.why_not_ragged(untested(source, Span(1, 3), stage.model))


@pytest.mark.parametrize("span", [Span(0, 4), Span(0, 2), Span(1, 3), Span(2, 4)], ids=str)
def test_bf16_replay_is_exact_in_every_part_of_a_model(span: Span) -> None:
    stage = load.load_stage(
        exactness.case(BY_NAME["llama"]).source, span, dtype="bfloat16", kv_memory=0
    )
    assert stage.ragged
    assert stage.replay_exact == linear_rows_agree(stage)


def test_the_probe_finds_where_chunks_change_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
    source = saved(Architecture("llama", keys, spread=1.5), tmp_path)
    stage = load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0)
    assert stage.chunk_exact == (stage.replay_exact and tile_attention.kernel is not None)
    monkeypatch.setattr(tile_attention, "usable", lambda *_: False)
    assert not load.load_stage(source, Span(0, 4), dtype="bfloat16", kv_memory=0).chunk_exact
    assert load.load_stage(source, Span(0, 4), dtype="float32", kv_memory=0).chunk_exact


def linear_rows_agree(stage: Stage) -> bool:
    """Whether this machine's bf16 linear gives equal bits for any number of rows from 2 up."""
    linear = next(m for m in stage.model.modules() if isinstance(m, torch.nn.Linear | PackedLinear))
    rows = torch.randn(64, linear.in_features, dtype=torch.bfloat16)
    with torch.inference_mode():
        whole = linear(rows)
        return all(torch.equal(linear(rows[:n]), whole[:n]) for n in range(2, 64))


def test_replay_without_the_second_row_would_not_be_exact(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = {"num_hidden_layers": 1, "hidden_size": 2048, "head_dim": 512}
    source = saved(Architecture("llama", keys), tmp_path)
    padded = load.load_stage(source, Span(0, 1), dtype="bfloat16", kv_memory=0)
    linear = next(
        m for m in padded.model.modules() if isinstance(m, torch.nn.Linear | PackedLinear)
    )
    torch.manual_seed(0)
    rows = torch.randn(64, linear.in_features, dtype=torch.bfloat16)
    with torch.inference_mode():
        alone = torch.cat([linear(row[None]) for row in rows])
        others = int((linear(rows) != alone).any(dim=1).sum())
    if others < len(rows) // 2:
        pytest.skip(f"on this machine {others} of 64 single rows have other bits: too few to see")
    assert padded.replay_exact == linear_rows_agree(padded)
    monkeypatch.setattr(runners, "MIN_ROWS", 1)
    assert not load.load_stage(source, Span(0, 1), dtype="bfloat16", kv_memory=0).replay_exact


def test_a_model_that_cannot_keep_sessions_apart_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = saved(BY_NAME["recurrent_gemma"], tmp_path)
    load.load_stage(source, Span(0, 4), dtype="float32", kv_memory=0)
    monkeypatch.setattr(ModuleState, "take", lambda self: [])
    with pytest.raises(ModelError, match=r"recurrent_gemma.*mixes sessions"):
        load.load_stage(source, Span(0, 4), dtype="float32", kv_memory=0)
