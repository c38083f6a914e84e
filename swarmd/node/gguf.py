"""Writes a Llama as GGUF, in which llama.cpp reads it, to measure the same shape there.

For speed only: heads are left in the order of transformers, so that its tokens would be others,
and there is no tokenizer. The format is that of ggml's docs/gguf.md, version 3.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open

ALIGNMENT = 32
_U32, _F32, _STRING = 4, 6, 8
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
_BLOCK = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_WHOLE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def write(directory: Path, target: Path) -> None:
    """Convert the one safetensors file and the config of a directory."""
    config = json.loads((directory / "config.json").read_text())
    with (
        safe_open(directory / "model.safetensors", framework="pt") as weights,
        target.open("wb") as out,
    ):
        names = {name: renamed(name) for name in weights.keys()}  # noqa: SIM118 - no mapping
        pairs = _metadata(config)
        out.write(struct.pack("<4sIQQ", b"GGUF", 3, len(names), len(pairs)))
        for key, value in pairs.items():
            _pair(out, key, value)
        offset = 0
        for name, new in names.items():
            offset = _entry(out, new, _tensor(weights, name), offset)
        for name in names:
            _pad(out)
            out.write(_tensor(weights, name).view(torch.uint8).numpy().tobytes())


def renamed(name: str) -> str:
    """Return llama.cpp's name for a weight."""
    stem = name.removesuffix(".weight")
    if stem in _WHOLE:
        return f"{_WHOLE[stem]}.weight"
    _, _, number, part = stem.split(".", 3)
    return f"blk.{number}.{_BLOCK[part]}.weight"


def _tensor(weights: Any, name: str) -> torch.Tensor:
    tensor: torch.Tensor = weights.get_tensor(name)
    return tensor.float() if tensor.dim() == 1 else tensor.contiguous()


def _metadata(config: dict[str, Any]) -> dict[str, int | float | str]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    rope = config.get("rope_parameters") or config
    return {
        "general.architecture": "llama",
        "llama.block_count": config["num_hidden_layers"],
        "llama.context_length": config["max_position_embeddings"],
        "llama.embedding_length": hidden,
        "llama.feed_forward_length": config["intermediate_size"],
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": config["num_key_value_heads"],
        "llama.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "llama.rope.dimension_count": config.get("head_dim") or hidden // heads,
        "llama.rope.freq_base": float(rope["rope_theta"]),
        "llama.vocab_size": config["vocab_size"],
        "tokenizer.ggml.model": "no_vocab",
    }


def _pair(out: BinaryIO, key: str, value: int | float | str) -> None:
    _string(out, key)
    if isinstance(value, str):
        out.write(struct.pack("<I", _STRING))
        _string(out, value)
    elif isinstance(value, float):
        out.write(struct.pack("<If", _F32, value))
    else:
        out.write(struct.pack("<II", _U32, value))


def _entry(out: BinaryIO, name: str, tensor: torch.Tensor, offset: int) -> int:
    """Write where a tensor will stand; return where the next one does."""
    _string(out, name)
    dims = tuple(reversed(tensor.shape))  # ggml counts from the innermost
    out.write(struct.pack(f"<I{len(dims)}Q", len(dims), *dims))
    out.write(struct.pack("<IQ", _TYPES[tensor.dtype], offset))
    return offset + -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT


def _string(out: BinaryIO, text: str) -> None:
    out.write(struct.pack("<Q", len(text)) + text.encode())


def _pad(out: BinaryIO) -> None:
    out.write(bytes(-out.tell() % ALIGNMENT))
