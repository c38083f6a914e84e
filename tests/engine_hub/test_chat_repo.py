"""The stand-in for a chat model of the 0.5B class is one to other tools as well."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from chat_repo import SMALL, ChatShape, write_chat_repo
from fetching import REPO, open_exact
from hub_server import HubServer

from swarmd.engine.checkpoint import open_checkpoint
from swarmd.text.tokenizer import Tokenizer


def test_its_shape_is_that_of_the_real_one() -> None:
    """494,032,768 parameters, as the hub says of Qwen/Qwen2.5-0.5B-Instruct."""
    s = ChatShape()
    kv = s.hidden // s.heads * s.kv_heads
    attention = 2 * s.hidden * (s.hidden + kv) + s.hidden + 2 * kv
    block = attention + 3 * s.hidden * s.intermediate + 2 * s.hidden
    assert s.vocab * s.hidden + s.layers * block + s.hidden == 494_032_768


def test_transformers_loads_it_whole_and_its_ids_vary(model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(
        model_dir, output_loading_info=True, dtype=torch.float32
    )
    assert {key: list(value) for key, value in report.items() if value} == {}
    prompt = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    ids = model.generate(prompt, do_sample=False, max_new_tokens=40, eos_token_id=None)
    assert len(set(ids[0, 8:].tolist())) >= 12


@pytest.mark.parametrize("text", ["Hello wörld, 123", "日本語 naïve 🙂\n\n  def f(x):", ""])
def test_its_tokenizer_takes_any_text_there_and_back(model_dir: Path, text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert Tokenizer.from_dir(model_dir).encode(text) == ids
    assert max(ids, default=0) < SMALL.vocab


def test_the_hub_serves_its_tokenizer_and_template(hub: HubServer, model_dir: Path) -> None:
    checkpoint = open_exact(REPO)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (checkpoint.files_dir / name).read_bytes() == (model_dir / name).read_bytes()
    assert not (checkpoint.files_dir / "README.md").exists()


def test_seeds_give_different_weights_and_the_same_seed_the_same(
    model_dir: Path, tmp_path: Path
) -> None:
    same, other = (write_chat_repo(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    digests = [open_checkpoint(str(d), cache_dir=tmp_path).digest for d in (model_dir, same, other)]
    assert digests[0] == digests[1] != digests[2]
