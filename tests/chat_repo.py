"""Writes a chat model with random weights, in the layout of a repository of the 0.5B class.

Config, names, dtypes and tokenizer are those of Qwen2.5-0.5B-Instruct; only the values are noise.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{%- if not (loop.first and message['role'] == 'system') %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Words, numbers digit by digit, punctuation and blanks apart: the tokenizer's own expression.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class ChatShape:
    """The numbers of a Qwen2 config; the defaults are those of the 0.5B model (1 GB in bf16)."""

    layers: int = 24
    hidden: int = 896
    heads: int = 14
    kv_heads: int = 2
    intermediate: int = 4864
    vocab: int = 151936


SMALL = ChatShape(layers=6, hidden=128, heads=4, kv_heads=2, intermediate=256, vocab=1024)


def write_chat_repo(
    directory: Path,
    shape: ChatShape = SMALL,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write config, tokenizer, chat template and random weights, and return the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    merges = list(islice(_merges(), shape.vocab - 256 - len(SPECIAL)))
    tokens = [*sorted(ByteLevel.alphabet()), *(a + b for a, b in merges)]
    first_special = len(tokens)
    vocab = {token: index for index, token in enumerate(tokens)}
    special = {token: first_special + index for index, token in enumerate(SPECIAL)}
    _write_json(directory / "config.json", _config(shape, dtype, special))
    _write_json(directory / "generation_config.json", _generation_config(special))
    _write_json(directory / "tokenizer.json", _tokenizer(vocab, merges, special))
    _write_json(directory / "tokenizer_config.json", _tokenizer_config(special))
    _write_json(directory / "vocab.json", vocab)
    lines = "".join(f"{a} {b}\n" for a, b in merges)
    (directory / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    (directory / "README.md").write_text("Random weights, for tests.\n")
    write_weights(directory, _weights(shape, dtype, seed), shards)
    return directory


def write_weights(
    directory: Path, weights: Iterable[tuple[str, torch.Tensor]], shards: int
) -> None:
    """Write one file, or several with an index, as `save_pretrained` does."""
    tensors = dict(weights)
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for index in range(shards):
        part = names[index * len(names) // shards : (index + 1) * len(names) // shards]
        file = f"model-{index + 1:05}-of-{shards:05}.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index_content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(directory / "model.safetensors.index.json", index_content)


def _weights(shape: ChatShape, dtype: torch.dtype, seed: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and values; the head is tied to the embedding, so there is none."""
    generator = torch.Generator().manual_seed(seed)
    hidden, kv = shape.hidden, shape.hidden // shape.heads * shape.kv_heads

    def noise(*size: int) -> torch.Tensor:
        values = torch.randn(size, generator=generator) * size[-1] ** -0.5
        return values.to(dtype)

    # Small beside what the blocks add, or a tied head would mostly predict the token it is given.
    yield "model.embed_tokens.weight", noise(shape.vocab, hidden) * 0.1
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", torch.ones(hidden, dtype=dtype)
        for name, rows in (("q", hidden), ("k", kv), ("v", kv)):
            yield f"{prefix}.self_attn.{name}_proj.weight", noise(rows, hidden)
            yield f"{prefix}.self_attn.{name}_proj.bias", noise(rows)
        yield f"{prefix}.self_attn.o_proj.weight", noise(hidden, hidden)
        yield f"{prefix}.post_attention_layernorm.weight", torch.ones(hidden, dtype=dtype)
        yield f"{prefix}.mlp.gate_proj.weight", noise(shape.intermediate, hidden)
        yield f"{prefix}.mlp.up_proj.weight", noise(shape.intermediate, hidden)
        yield f"{prefix}.mlp.down_proj.weight", noise(hidden, shape.intermediate)
    yield "model.norm.weight", torch.ones(hidden, dtype=dtype)


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs of bytes, commonest letters first, then triples: any length of vocabulary."""
    common = [c for c in " etaoinshrdlucmfwypvbgkqjxz" if c != " "]
    alphabet = ["Ġ", *common, *sorted(set(ByteLevel.alphabet()) - {"Ġ", *common})]
    pairs = list(product(alphabet, alphabet))
    yield from pairs
    yield from ((a + b, c) for a, b in pairs for c in alphabet)


def _config(shape: ChatShape, dtype: torch.dtype, special: dict[str, int]) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": special["<|endoftext|>"],
        "eos_token_id": special["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": 32768,
        "max_window_layers": 21,
        "model_type": "qwen2",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.43.1",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": shape.vocab,
    }


def _generation_config(special: dict[str, int]) -> dict[str, Any]:
    return {
        "bos_token_id": special["<|endoftext|>"],
        "pad_token_id": special["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [special["<|im_end|>"], special["<|endoftext|>"]],
        "repetition_penalty": 1.1,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "transformers_version": "4.37.0",
    }


def _tokenizer(
    vocab: dict[str, int], merges: list[tuple[str, str]], special: dict[str, int]
) -> dict[str, Any]:
    split = {
        "type": "Split",
        "pattern": {"Regex": SPLIT},
        "behavior": "Isolated",
        "invert": False,
    }
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(index, token) for token, index in special.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }


def _added(index: int, token: str) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": token, **flags, "special": True}


def _tokenizer_config(special: dict[str, int]) -> dict[str, Any]:
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(index): {k: v for k, v in _added(index, token).items() if k != "id"}
            for token, index in special.items()
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
