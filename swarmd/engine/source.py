"""What the engine needs from a checkpoint: a config, tensor names with their sizes, and bytes.

Where those come from (a directory, a hub) is `swarmd.engine.checkpoint`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from swarmd.engine.progress import Progress


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """One tensor of a checkpoint, as its header describes it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


class Source(Protocol):
    """A model's files, read tensor by tensor. All members may be used from several threads."""

    @property
    def name(self) -> str:
        """The model's name as the user gave it."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 in hex over config and weights: equal for nodes that serve the same model."""
        ...

    @property
    def files_dir(self) -> Path:
        """Directory that holds `config.json` and the tokenizer's files."""
        ...

    def config_dict(self) -> dict[str, Any]:
        """The parsed `config.json`, a fresh dict at each call."""
        ...

    def tensors(self) -> Mapping[str, TensorMeta]:
        """Every tensor of the checkpoint by its name there."""
        ...

    def fetch(self, names: Iterable[str], progress: Progress | None = None) -> None:
        """Bring the bytes of these tensors to this machine, so that `read` need not wait.

        Raises HubError when they cannot be fetched.
        """
        ...

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor on the CPU in memory of its own, for the caller to keep.

        A mapping would stay beside a cast copy. Raises WeightsError when the file is damaged.
        """
        ...
