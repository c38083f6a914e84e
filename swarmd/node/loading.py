"""From a configuration to a loaded stage: open the model, choose the span, load it.

Runs on a thread of its own, beside the event loop. Reading and placing are the engine's and
`swarmd.swarm.placement`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from swarmd.core.config import NodeConfig
from swarmd.core.errors import ConfigError, ModelError
from swarmd.core.peers import ModelInfo
from swarmd.core.span import Span
from swarmd.engine.checkpoint import Checkpoint, open_checkpoint
from swarmd.engine.kv_cache import KVBudget
from swarmd.engine.layout import parse_config
from swarmd.engine.load import (
    DTYPES,
    check_splittable,
    choose_device,
    choose_dtype,
    default_threads,
    estimate_span_bytes,
    free_memory,
    load_stage,
    model_info,
)
from swarmd.engine.stage import Stage
from swarmd.node.background import in_background
from swarmd.node.prompts import Prompts

Progress = Callable[[int, int, str], None]

DAEMON_BYTES = 700 << 20
"""What the daemon itself takes: interpreter, libraries, directory process."""
WEIGHTS_SHARE = 0.7
"""Of the memory that is free, for weights when the span is chosen here; the rest is for KV."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that has been opened, of which nothing is loaded yet."""

    checkpoint: Checkpoint
    info: ModelInfo
    prompts: Prompts
    max_blocks: int
    """How many blocks fit this machine."""
    dtype: str


def open_model(config: NodeConfig, progress: Progress | None = None) -> Opened:
    """Open the model and find out whether it can be split. Raises ModelError, HubError."""
    checkpoint = open_checkpoint(config.model, revision=config.revision, progress=progress)
    check_splittable(checkpoint.config_dict())
    parsed = parse_config(checkpoint.config_dict())
    name = config.served_model_name or _default_name(config.model)
    info = model_info(checkpoint, parsed, name, config.max_model_len)
    prompts = Prompts(checkpoint.files_dir)
    eos = dict.fromkeys((*info.eos_token_ids, *prompts.eos_token_ids))
    info = replace(info, eos_token_ids=tuple(eos))
    device = choose_device(config.device)
    dtype, _ = choose_dtype(config.dtype, device, parsed)
    names = {kind: name for name, kind in DTYPES.items()}
    room = int((free_memory(device) - DAEMON_BYTES) * WEIGHTS_SHARE)
    room = room if config.weights_memory is None else config.weights_memory
    if config.blocks != "auto":
        Span.parse(config.blocks, info.num_blocks)
    fits = _max_blocks(checkpoint, info, dtype, room) if config.blocks == "auto" else 0
    return Opened(checkpoint, info, prompts, fits, names[dtype])


def _default_name(model: str) -> str:
    """The hub's name, or the name of the directory, which is the same on machines that copy it."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


def _max_blocks(checkpoint: Checkpoint, info: ModelInfo, dtype: torch.dtype, room: int) -> int:
    """How many consecutive blocks fit into `room` bytes, wherever they lie."""
    ends = estimate_span_bytes(checkpoint, Span(0, info.num_blocks), dtype)
    middle = info.num_blocks // 2
    block = estimate_span_bytes(checkpoint, Span(middle, middle + 1), dtype)
    if ends <= room:
        return info.num_blocks
    # Embedding and head count once each: both are taken off, so that any span of this length fits.
    fits = (room - max(0, ends - block * info.num_blocks)) // max(block, 1)
    if fits < 1:
        raise ModelError(
            f"not even one block of {info.name} fits: a block takes {block >> 20} MiB and "
            f"{room >> 20} MiB are free for weights"
        )
    return int(fits)


def fits_beside(config: NodeConfig, opened: Opened, span: Span) -> bool:
    """Whether a span can be loaded while another one is still there."""
    needed = estimate_span_bytes(opened.checkpoint, span, DTYPES[opened.dtype])
    return 2 * needed + DAEMON_BYTES < free_memory(choose_device(config.device))


def size_kv(config: NodeConfig, stage: Stage) -> None:
    """Give a stage that was loaded beside another one the memory that has come free."""
    if config.kv_memory is None:
        stage.budget = KVBudget(free_memory(stage.device) // 2)


def check_memory(config: NodeConfig, opened: Opened, span: Span) -> None:
    """Raise ConfigError, before anything is loaded, where weights or KV cannot fit the memory."""
    weights = estimate_span_bytes(opened.checkpoint, span, DTYPES[opened.dtype])
    free = free_memory(choose_device(config.device))
    if weights > free:
        raise ConfigError(
            f"the weights of blocks {span} take {weights >> 20:,} MiB in {opened.dtype}, and "
            f"{free >> 20:,} MiB of memory are free: serve fewer blocks (--blocks)"
        )
    if config.kv_memory is not None and weights + config.kv_memory > free:
        raise ConfigError(
            f"--kv-memory {config.kv_memory >> 20:,} MiB and {weights >> 20:,} MiB of weights do "
            f"not fit the {free >> 20:,} MiB of memory that are free: at most "
            f"{(free - weights) >> 20:,} MiB are left for KV"
        )


def threads_of(config: NodeConfig) -> int:
    """Return how many threads compute: what the probes find out, and the name of the precision,
    hold for that number of them."""
    return config.threads or default_threads().count


def load(config: NodeConfig, opened: Opened, span: Span, progress: Progress | None = None) -> Stage:
    """Load a span. Raises WeightsError, HubError, ModelError, or ConfigError: no room for it."""
    stage = load_stage(
        opened.checkpoint,
        span,
        device=config.device,
        dtype=config.dtype,
        threads=threads_of(config),
        kv_memory=config.kv_memory,
        max_model_len=config.max_model_len,
        name=opened.info.name,
        progress=progress,
    )
    stage.info = opened.info
    # Not a tile: with less than one, a node can still coordinate, though hold nobody.
    budget, least = stage.budget.total_bytes, stage.kv_bytes_fixed + stage.kv_bytes_per_token
    if budget < least:
        raise ConfigError(
            f"{budget:,} bytes for KV hold not one token, which takes {least:,} on blocks {span}: "
            "give more with --kv-memory, or serve fewer blocks"
        )
    return stage


class Loader:
    """Loads spans of one opened model, on threads that nobody has to wait for."""

    def __init__(self, config: NodeConfig, opened: Opened) -> None:
        self._config = config
        self.opened = opened

    async def load(self, span: Span, progress: Progress) -> Stage:
        """See `load`."""
        return await in_background(load, self._config, self.opened, span, progress)

    async def fits_beside(self, span: Span) -> bool:
        """See `fits_beside`, which lays a model out."""
        return await in_background(fits_beside, self._config, self.opened, span)

    def size_kv(self, stage: Stage) -> None:
        """See `size_kv`."""
        size_kv(self._config, stage)
