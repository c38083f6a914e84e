"""The files of a model's repository: which are weights, which are read whole, which are refused.

Names and JSON come from strangers and are checked here; what the tensors are is `checkpoint`'s
business.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from swarmd.core.errors import ModelError, WeightsError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
MAX_JSON_BYTES = 64 << 20

_PICKLED = re.compile(r"pytorch_model.*\.bin|.*\.(pt|pth|ckpt|pkl)")
# Config, tokenizer in all its historic forms, generation config and chat templates.
_SMALL = re.compile(
    r"config\.json|generation_config\.json|(special_)?tokens?(izer)?[\w.-]*\.(json|model|txt)"
    r"|(added_tokens|vocab|chat_template)\.json|(vocab|merges)\.txt|(spiece|sentencepiece[\w.]*)\.model"
    r"|[\w.-]+\.tiktoken|chat_template\.jinja|additional_chat_templates/[\w.-]+\.jinja"
    r"|model\.safetensors\.index\.json"
)


def is_small_file(name: str) -> bool:
    """Whether a repository's file is downloaded whole by every node."""
    return _SMALL.fullmatch(name) is not None


def choose_weights(
    index_dir: Path, names: Sequence[str], where: str
) -> tuple[list[str], dict[str, str] | None]:
    """The weights files among a repository's file `names`, and the index if there is one.

    As transformers does, one `model.safetensors` is preferred to an index, which is read from
    `index_dir`. Errors: ModelError, WeightsError.
    """
    if find_weights(names, where) == SINGLE_FILE:
        return [SINGLE_FILE], None
    weight_map = read_weight_map(index_dir / INDEX_FILE)
    return sorted(set(weight_map.values())), weight_map


def find_weights(names: Collection[str], where: str) -> str:
    """The single file of weights or the index, whichever is there. Errors: ModelError."""
    if CONFIG_FILE not in names:
        raise ModelError(f"{where} has no {CONFIG_FILE}: not a model that can be served")
    for name in (SINGLE_FILE, INDEX_FILE):
        if name in names:
            return name
    pickled = [name for name in names if _PICKLED.fullmatch(name)]
    if pickled:
        raise ModelError(
            f"{where} has its weights only in pickle files ({few(pickled)}), which can run code "
            f"when they are read: swarmd reads only safetensors. Look for a converted copy"
        )
    raise ModelError(f"{where} has neither {SINGLE_FILE} nor {INDEX_FILE}")


def files_of_directory(path: Path) -> tuple[list[str], dict[str, str] | None]:
    """See `choose_weights`, of a directory in the hub's layout, where every file must be."""
    files, weight_map = choose_weights(path, sorted(os.listdir(path)), str(path))
    absent = [file for file in files if not (path / file).is_file()]
    if absent:
        raise WeightsError(f"{path} lacks {len(absent)} of {len(files)} files: {few(absent)}")
    return files, weight_map


def read_config(path: Path) -> dict[str, Any]:
    """config.json as a dict. Errors: ModelError."""
    return _read_object(path, ModelError)


def read_weight_map(path: Path) -> dict[str, str]:
    """File of each tensor, out of an index, with every file name checked. Errors: WeightsError."""
    weight_map = _read_object(path, WeightsError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise WeightsError(f"{path}: no weight_map")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not is_plain_file(file) or not _is_safetensors(file):
            raise WeightsError(f"{path}: tensor {name!r} is said to lie in {file!r}: refused")
    return weight_map


def is_plain_file(name: str) -> bool:
    """Whether a repository's file name stays inside the repository, on every system."""
    parts = PurePosixPath(name).parts
    return (
        0 < len(name) < 1024
        and name.isprintable()
        and not any(c in name for c in '\\:*?"<>|')
        and name == "/".join(parts)
        and not any(part in ("..", ".", "/") for part in parts)
    )


def _is_safetensors(name: str) -> bool:
    return name.endswith(".safetensors")


def _read_object(path: Path, error_type: type[ModelError] | type[WeightsError]) -> dict[str, Any]:
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise error_type(f"{path}: {size} bytes, at most {MAX_JSON_BYTES} are read")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise error_type(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise error_type(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise error_type(f"{path}: a JSON {type(content).__name__}, not an object")
    return content


def few(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, for an error message."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
