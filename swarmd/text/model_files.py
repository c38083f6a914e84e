"""Reads the small text files of a model directory, with a limit on each: they are a stranger's.

What stands in them is the business of `swarmd.text.tokenizer` and `swarmd.text.chat`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swarmd.core.errors import ModelError

MAX_JSON_BYTES = 16 << 20
NAMED_SPECIAL_TOKENS = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_text(path: Path, limit: int = MAX_JSON_BYTES) -> str | None:
    """Return the text of a UTF-8 file, or None when there is none.

    Raises ModelError when it is larger than `limit` bytes, not UTF-8, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ModelError(f"{path} is larger than {limit} bytes: this is not a usual model file")
        return data.decode()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file, `{}` when there is no file.

    Raises ModelError when it is too large, malformed or not an object.
    """
    text = read_text(path, limit)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}. Download the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, not a {type(value).__name__}")
    return value


def read_tokenizer_config(directory: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, completed by special_tokens_map.json as transformers does."""
    config = read_json(directory / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    return config | read_json(directory / "special_tokens_map.json")


def named_special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """Return `{"bos_token": "<s>", ...}` for the names that a tokenizer config gives."""
    found: dict[str, str] = {}
    for name in NAMED_SPECIAL_TOKENS:
        value = config.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            found[name] = content
    return found
