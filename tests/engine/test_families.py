"""Families are named in one file, and what cannot be split is refused before anything is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

import swarmd.engine
from swarmd.core.errors import ModelError
from swarmd.engine.families import UNSPLITTABLE
from swarmd.engine.layout import find_layout, parse_config, slice_config
from swarmd.engine.load import check_splittable
from tests.engine.architectures import ARCHITECTURES

ENGINE = Path(next(iter(swarmd.engine.__path__)))


def test_no_other_file_names_a_family() -> None:
    names = {a.family for a in ARCHITECTURES} | set(UNSPLITTABLE)
    # Words of the trade that are also families.
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, sorted(names))) + r")\b", re.IGNORECASE)
    for path in sorted(ENGINE.glob("*.py")):
        if path.name != "families.py":
            code = _without_comments(path.read_text())
            if path.name == "simd.py":
                code = code.replace(".phi(", "(")  # an instruction of LLVM
            assert not (found := pattern.findall(code)), f"{path.name} names {found}"


def _without_comments(source: str) -> str:
    """What runs: a docstring or comment may explain a decision by a family's example."""
    source = re.sub(r'""".*?"""', "", source, flags=re.DOTALL)
    source = re.sub(r"#.*", "", source)
    return re.sub(r"[\w-]+/[\w.-]+", "", source)  # a model's name on the hub, in a message


@pytest.mark.parametrize("family", sorted(UNSPLITTABLE))
def test_what_cannot_be_split_is_refused_by_name(family: str) -> None:
    with pytest.raises(ModelError, match=f"{family}.*cannot be split"):
        check_splittable({"model_type": family})


@pytest.mark.parametrize("family", ["no_such_family", "", "NemotronH_Custom"])
def test_an_unknown_family_is_refused_and_no_code_of_its_own_is_run(family: str) -> None:
    config = {"model_type": family, "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    with pytest.raises(ModelError, match="never run"):
        check_splittable(config)


@pytest.mark.parametrize(
    ("family", "problem"),
    [
        ("bert", "takes no hidden states from outside"),
        ("t5", "cannot be split into blocks: they are encoder-decoders.* decoder-only model"),
        ("bart", "encoder-decoder"),
        ("vit", "do not generate text from text"),
        ("gemma3", "more than text"),
        ("qwen2_5_vl", "more than text"),
    ],
)
def test_models_of_other_kinds_are_refused_by_name(family: str, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        check_splittable({"model_type": family})


def test_a_config_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ModelError, match="llama"):
        check_splittable({"model_type": "llama", "hidden_size": "wide"})
    with pytest.raises(ModelError, match="llama"):
        check_splittable({"model_type": "llama", "hidden_size": 48, "num_attention_heads": 5})


def test_blocks_that_share_keys_and_values_are_refused() -> None:
    config = CONFIG_MAPPING["llama"](num_hidden_layers=4, num_kv_shared_layers=2).to_dict()
    with pytest.raises(ModelError, match="last 2 blocks"):
        parse_config(config)


def test_a_layout_says_what_runs_before_and_after_the_blocks() -> None:
    layout = find_layout(CONFIG_MAPPING["gpt2"](n_layer=3))
    assert (layout.trunk, layout.blocks, layout.num_blocks) == ("transformer", "h", 3)
    assert layout.before == {"wte", "wpe"}
    assert layout.after == {"ln_f"}
    layout = find_layout(CONFIG_MAPPING["bloom"](n_layer=2))
    assert layout.before == {"word_embeddings", "word_embeddings_layernorm"}


def test_lists_per_block_are_cut_with_the_blocks_even_computed_ones() -> None:
    config = CONFIG_MAPPING["qwen2"](
        num_hidden_layers=4, use_sliding_window=True, max_window_layers=3
    )
    cut = slice_config(config, 2, 4)
    assert cut.num_hidden_layers == 2
    assert cut.layer_types == config.layer_types[2:4] == ["full_attention", "sliding_attention"]
    config = CONFIG_MAPPING["jamba"](
        num_hidden_layers=8, attn_layer_period=4, attn_layer_offset=3, use_mamba_kernels=False
    )
    assert slice_config(config, 3, 6).layer_types == config.layer_types[3:6]
    assert config.num_hidden_layers == 8


def test_a_list_that_only_happens_to_be_as_long_is_left_alone() -> None:
    config = CONFIG_MAPPING["llama"](num_hidden_layers=3, eos_token_id=[1, 2, 3])
    assert slice_config(config, 0, 2).eos_token_id == [1, 2, 3]
