"""Builds a GPT-2 tokenizer from vocab.json and merges.txt, for models older than tokenizer.json.

Only that family: others split words differently, and would silently give other ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from swarmd.text.model_files import named_special_tokens, read_json, read_text

_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")


def build_gpt2(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer | None:
    """Return the tokenizer, or None when this is not a GPT-2 one or a file is missing.

    `config` is tokenizer_config.json; the class may also stand in the model's config.json.
    """
    vocab = read_json(directory / "vocab.json")
    merges = read_text(directory / "merges.txt")
    if not vocab or merges is None or not _is_gpt2(directory, config):
        return None
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=_pairs(merges)))
    prefix_space = bool(config.get("add_prefix_space", False))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    backend.decoder = decoders.ByteLevel()
    bos = named_special_tokens(config).get("bos_token", "<|endoftext|>")
    backend.add_special_tokens([tokenizers.AddedToken("<|endoftext|>", special=True)])
    if config.get("add_bos_token"):
        backend.add_special_tokens([tokenizers.AddedToken(bos, special=True)])
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return backend


def _is_gpt2(directory: Path, config: Mapping[str, Any]) -> bool:
    if "tokenizer_class" in config:
        return config["tokenizer_class"] in _CLASSES
    return read_json(directory / "config.json").get("model_type") == "gpt2"


def _pairs(merges: str) -> list[tuple[str, str]]:
    """Return the merges; the first line is a comment that names the format's version."""
    lines = (line for line in merges.split("\n") if line and not line.startswith("#version"))
    return [(left, right) for left, _, right in (line.partition(" ") for line in lines)]
