"""A checkpoint in a local directory, read with safetensors: the engine's tests need no more."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from swarmd.engine.progress import Progress
from swarmd.engine.source import TensorMeta

_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64}


class DirectorySource:
    """Implements `swarmd.engine.source.Source` over `*.safetensors` and `config.json`."""

    def __init__(self, directory: Path) -> None:
        self.files_dir = directory
        self.name = directory.name
        self._where: dict[str, Path] = {}
        self._metas: dict[str, TensorMeta] = {}
        self.was_read: list[str] = []
        digest = hashlib.sha256((directory / "config.json").read_bytes())
        for path in sorted(directory.glob("*.safetensors")):
            digest.update(path.read_bytes())
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a dict
                    part = file.get_slice(key)
                    dtype, shape = _DTYPES[part.get_dtype()], tuple(part.get_shape())
                    count = torch.Size(shape).numel()
                    self._metas[key] = TensorMeta(dtype, shape, count * dtype.itemsize)
                    self._where[key] = path
        self.digest = digest.hexdigest()

    def config_dict(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.files_dir / "config.json").read_text())
        return result

    def tensors(self) -> Mapping[str, TensorMeta]:
        return self._metas

    def fetch(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Nothing to do."""

    def read(self, name: str) -> torch.Tensor:
        self.was_read.append(name)
        with safe_open(self._where[name], framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
        return tensor
