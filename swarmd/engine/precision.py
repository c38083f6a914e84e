"""What a stage computes in, as one short name: equal names stand for equal bits.

Who looks for the same one is `swarmd.swarm.terms`'s business, who says that there was none
`swarmd.pipeline`'s.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

import torch

from swarmd.engine import packed, tile_attention
from swarmd.engine.stage import Stage

DIGITS = 8


def precision_of(stage: Stage) -> str:
    """Return the dtype of a stage; below float32, with a name of all that its last bits depend on.

    Results in float32 differ in their last bits as well, from machine to machine, but these decide
    no token: what a peer of any kind computes again stands for the same. In 16 bits they do, at one
    or two of a hundred positions.
    """
    dtype = str(stage.dtype).removeprefix("torch.")
    if stage.dtype == torch.float32 and not _is_shortened(stage.device):
        return dtype
    return name_of(dtype, _circumstances(stage))


def name_of(dtype: str, circumstances: Iterable[object]) -> str:
    """Return the name of a dtype under these circumstances."""
    text = "\n".join(map(str, circumstances))
    return f"{dtype}/{hashlib.sha256(text.encode()).hexdigest()[:DIGITS]}"


def _is_shortened(device: torch.device) -> bool:
    """Whether products in float32 are computed with fewer bits (TF32)."""
    return device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32


def _circumstances(stage: Stage) -> Iterable[object]:
    """Yield what decides in which order sums are taken, and how they are rounded."""
    yield from (torch.__version__, _version("transformers"), stage.ragged)
    if stage.device.type == "cuda":
        yield from (torch.version.cuda, torch.cuda.get_device_name(stage.device))
        yield torch.backends.cuda.matmul.allow_tf32
        return
    yield from (stage.device.type, platform.machine(), torch.backends.cpu.get_cpu_capability())
    for feature in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        yield getattr(torch.cpu, feature, bool)()
    # A sum is divided among threads.
    yield torch.get_num_threads()
    yield layout.__name__ if (layout := packed.best_layout()) else "plain"
    yield _version("numba") if tile_attention.available(stage.device, stage.dtype) else "no kernel"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
