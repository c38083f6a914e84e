"""From a model's files to a stage that is ready to serve: choices of device, dtype and memory.

Reading weights is `swarmd.engine.weights`' business, finding out what the loaded model can do is
`swarmd.engine.probe`'s.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

import psutil
import torch
from transformers import PreTrainedConfig

from swarmd.core.errors import ConfigError, ModelError
from swarmd.core.peers import ModelInfo
from swarmd.core.span import Span
from swarmd.engine import attention, norms, packed, probe, tile_attention
from swarmd.engine.kv_cache import KVBudget
from swarmd.engine.layout import find_layout, parse_config
from swarmd.engine.precision import precision_of
from swarmd.engine.progress import Progress
from swarmd.engine.source import Source, TensorMeta
from swarmd.engine.stage import Stage
from swarmd.engine.weights import load_span, needed_names

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_stage(
    source: Source,
    span: Span,
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    kv_memory: int | None = None,
    max_model_len: int | None = None,
    name: str | None = None,
    progress: Progress | None = None,
) -> Stage:
    """Load a span of a model's blocks. Takes seconds to minutes; call it off the event loop.

    `kv_memory` is in bytes; without it half of the memory that is free after the weights. Raises
    ModelError, WeightsError, ConfigError or HubError.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    attention.register()
    config = parse_config(source.config_dict())
    layout = find_layout(config)
    where = choose_device(device)
    kind, _ = choose_dtype(dtype, where, config)
    if where.type == "cuda":
        # Convolutions in float32 would be shortened to TF32; products are not, unless asked for.
        torch.backends.cudnn.allow_tf32 = False
        # It plans anew for each length that it has not met, and every step has another.
        torch.backends.cuda.enable_cudnn_sdp(False)
    model = load_span(source, config, span, kind, where, progress, layout)
    info = model_info(source, config, name, max_model_len)
    packed.pack(model, embeds=span.start == 0)
    check_kernel(where, kind)
    if where.type == "cpu" and span.end == layout.num_blocks:
        norms.check_kernel()
    stage = Stage(model, layout, span, info, kind, where)
    examine(stage)
    if packed.unpack_those_read(model):
        stage = Stage(model, layout, span, info, kind, where)
        examine(stage)
    stage.precision = precision_of(stage)
    stage.budget = KVBudget(kv_memory if kv_memory is not None else free_memory(where) // 2)
    return stage


def check_kernel(device: torch.device, dtype: torch.dtype) -> None:
    """Compile the attention kernel if this stage will use it, and give it up if it is wrong."""
    if not tile_attention.available(device, dtype):
        return
    try:
        error = probe.kernel_error(dtype)
        good, problem = (
            error <= probe.TOLERANCE[dtype],
            f"it differs by {error:.1e} from the plain way",
        )
    except Exception as failure:
        good, problem = False, f"{type(failure).__name__}: {failure}"
    if not good:
        log.warning("the attention kernel is not used on this machine: %s", problem)
        tile_attention.give_up()


def examine(stage: Stage) -> None:
    """Let the probe find out what the stage can do, and set it accordingly.

    Raises ModelError for a model whose blocks cannot run apart, or that mixes sessions up.
    """
    if problem := probe.why_not_apart(stage):
        raise ModelError(f"this {stage.layout.family} model cannot be split into blocks: {problem}")
    reason = probe.why_not_ragged(stage)
    if reason:
        stage.run_one_by_one(reason)
        if not probe.can_continue_in_chunks(stage):
            stage.run_one_by_one(reason, chunks=False)
        if not probe.sessions_stay_apart(stage):
            raise ModelError(
                f"this {stage.layout.family} model mixes sessions up: it keeps state where "
                "neither the cache nor its modules show it, so it cannot be served"
            )
    stage.replay_exact = probe.is_replay_exact(stage)
    stage.chunk_exact = probe.is_chunk_exact(stage)
    size = probe.measure_kv(stage)
    stage.kv_bytes_per_token, stage.kv_bytes_fixed = size.per_token, size.fixed
    stage.kv_sizes = size.blocks


def choose_device(device: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device. Raises ConfigError if it is absent."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device {device!r}: expected auto, cpu, cuda or cuda:N") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r}: expected auto, cpu, cuda or cuda:N")
    if chosen.type == "cpu":
        return chosen
    if torch.version.cuda is None and torch.version.hip is None:
        raise ConfigError(
            f"device {device!r}: this build of torch ({torch.__version__}) has no CUDA; install "
            "one that has, or use --device cpu"
        )
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (chosen.index or 0) >= count:
        have = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}" if count else "no device"
        raise ConfigError(f"device {device!r}: torch finds {have} on this machine")
    return torch.device("cuda", chosen.index or 0)


def choose_dtype(
    dtype: str, device: torch.device, config: PreTrainedConfig
) -> tuple[torch.dtype, str]:
    """Return the element type to compute in, and why. Raises ConfigError for an unknown name."""
    if dtype in DTYPES:
        return DTYPES[dtype], "asked for"
    if dtype != "auto":
        raise ConfigError(f"dtype {dtype!r}: expected auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= BF16_SINCE:
            return torch.bfloat16, "the device computes in it natively"
        return (
            torch.float32,
            "the device has no bfloat16, and float16 is too narrow for some models",
        )
    if cpu_has_bf16():
        return torch.bfloat16, "this CPU has bfloat16 instructions"
    return torch.float32, "this CPU has no bfloat16 instructions, which makes others slow"


BF16_SINCE = (8, 0)
"""Compute capability."""


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 in hardware."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in checks)


def free_memory(device: torch.device) -> int:
    """Bytes of memory free on the device, those included that torch keeps to use them again."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + max(0, kept)
    return int(psutil.virtual_memory().available)


def model_info(
    source: Source, config: PreTrainedConfig, name: str | None, max_model_len: int | None
) -> ModelInfo:
    """What the swarm knows of the model. Raises ModelError if max_model_len is too long for it."""
    made_for = int(getattr(config, "max_position_embeddings", 0) or 2048)
    length = max_model_len or _length_without_a_break(config, made_for)
    if max_model_len is not None and not 1 <= max_model_len <= made_for:
        raise ModelError(f"max_model_len {max_model_len}: the model was made for {made_for}")
    eos = getattr(config, "eos_token_id", None)
    return ModelInfo(
        name=name or source.name,
        digest=source.digest,
        num_blocks=int(config.num_hidden_layers),
        hidden_size=int(config.hidden_size),
        vocab_size=int(config.vocab_size),
        max_model_len=length,
        eos_token_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
    )


def _length_without_a_break(config: PreTrainedConfig, made_for: int) -> int:
    """Return the length up to which every position means the same in every sequence.

    With `longrope`, a sequence that outgrows the original length has all its keys computed anew,
    which nodes that hold each a part of them cannot do; so beyond it only who asks is served.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return made_for
    original = rope.get("original_max_position_embeddings")
    return min(made_for, int(original or made_for))


def check_splittable(config_dict: dict[str, object]) -> None:
    """Raise ModelError for a model that cannot be split, from its config alone."""
    find_layout(parse_config(config_dict))


def estimate_span_bytes(source: Source, span: Span, dtype: torch.dtype | None = None) -> int:
    """Bytes that the weights of a span take in memory, in `dtype` (default: as stored)."""
    config = parse_config(source.config_dict())
    names = needed_names(source, config, span, find_layout(config))
    tensors = source.tensors()
    return sum(_bytes_in(tensors[name], dtype) for name in names.values())


def _bytes_in(meta: TensorMeta, dtype: torch.dtype | None) -> int:
    if dtype is None or not meta.dtype.is_floating_point:
        return meta.nbytes
    return meta.numel * dtype.itemsize


@dataclass(frozen=True, slots=True)
class Threads:
    """How many threads compute, and why."""

    count: int
    reason: str


def default_threads() -> Threads:
    """All cores but one, which gRPC and the directory need."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = max(1, (cores or 2) - 1)
    return Threads(count, f"{cores} cores, one of them for the network")
