"""What the tests of fetching share: names of blocks, bytes on disk, and impatient policies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import safe_open

from swarmd.engine.checkpoint import Checkpoint
from swarmd.engine.hub import open_repo
from swarmd.engine.range_download import FetchPolicy
from swarmd.engine.retry import RetryPolicy
from swarmd.engine.weights_file import read_header

# One connection and nothing taken along, so that the log can be compared with arithmetic.
EXACT = FetchPolicy(gap_bytes=0, connections=1)
REPO = "Org/Chat-0.5B"
WEIGHTS = "model.safetensors"


class Waits:
    """Stands for `time.sleep`: notes how long it was told to wait."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


def open_exact(
    repo: str, waits: Callable[[float], object] | None = None, attempts: int = 3
) -> Checkpoint:
    """Open by the environment's hub, asking for nothing but what is wanted."""
    return open_repo(
        repo, fetch=EXACT, retry=RetryPolicy(attempts=attempts), sleep=waits or Waits()
    )


def blocks(checkpoint: Checkpoint, start: int, end: int) -> list[str]:
    """Names of the tensors of blocks `[start, end)`."""
    return [
        name
        for name in checkpoint.tensors()
        if (match := re.match(r"model\.layers\.(\d+)\.", name)) and start <= int(match[1]) < end
    ]


def bytes_of(checkpoint: Checkpoint, names: Iterable[str]) -> int:
    return sum(checkpoint.tensors()[name].nbytes for name in names)


def header_size(path: Path) -> int:
    return read_header(path, "test").data_start


def assert_same(checkpoint: Checkpoint, names: Iterable[str], files: Iterable[Path]) -> None:
    """Compare with what the safetensors library reads."""
    remaining = set(names)
    assert remaining
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in remaining & set(file.keys()):
                expected = file.get_tensor(name)
                got = checkpoint.read(name)
                assert got.dtype == expected.dtype
                assert torch.equal(got, expected), name
                remaining.discard(name)
    assert not remaining
