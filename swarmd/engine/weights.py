"""Builds a transformers model that has only one span's weights, read tensor by tensor.

Names, merged experts, tied embeddings and computed buffers are transformers' own business: it is
handed the span's tensors under the names that a model of that length would have. Where the bytes
come from is the `Source`'s, and what runs on the model is `swarmd.engine.stage`'s business.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from swarmd.core.errors import ModelError, SwarmdError, WeightsError
from swarmd.core.span import Span
from swarmd.engine.block_names import check_block_count, span_tensors
from swarmd.engine.layout import (
    NUMBER_NAMES,
    Layout,
    find_layout,
    model_class,
    on_meta,
    quiet,
)
from swarmd.engine.lean_import import without_compiler
from swarmd.engine.progress import Meter, Progress
from swarmd.engine.source import Source


class Bypass(nn.Module):
    """Stands where weights of other nodes would be: passes a floating tensor on, adds nothing."""

    def forward(self, *args: Any, **_: Any) -> torch.Tensor:
        """Return the first batch of hidden states, or a zero that vanishes in a sum."""
        for value in args:
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() == 3:
                return value
        device = next((v.device for v in args if isinstance(v, torch.Tensor)), None)
        return torch.zeros((), device=device, dtype=torch.get_default_dtype())


def load_span(
    source: Source,
    config: PreTrainedConfig,
    span: Span,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
    layout: Layout | None = None,
) -> nn.Module:
    """Return the causal language model with blocks `span` only, in evaluation mode.

    Its blocks are renumbered from 0 and its config is the whole model's. It has the embedding if it
    has block 0, norm and head if it has the last block. Raises WeightsError when tensors are
    missing or have other shapes than the config says.
    """
    layout = layout or find_layout(config)
    _check_span(span, layout.num_blocks)
    names = needed_names(source, config, span, layout)
    source.fetch(names.values(), progress)
    total = sum(source.tensors()[name].nbytes for name in names.values())
    meter = Meter(progress, total, f"load blocks {span}")
    built = _span_class(config, span, layout)
    try:
        with quiet(), without_compiler(), _one_by_one():
            model, report = built.from_pretrained(  # type: ignore[attr-defined]
                None,
                config=config,
                state_dict={new: _LazyTensor(source, old, meter) for new, old in names.items()},
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # `_check_report` names the tensor instead
            )
    except SwarmdError:
        raise
    except Exception as error:
        raise WeightsError(f"the weights do not fit the config: {error}") from error
    _check_report(report)
    _give_back_what_was_freed()
    return model.eval().requires_grad_(False).to(device)  # type: ignore[no-any-return]


def _give_back_what_was_freed() -> None:
    """Casts leave the allocator with free memory that it would keep; glibc can be told to."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _check_span(span: Span, num_blocks: int) -> None:
    if span.end > num_blocks:
        raise ModelError(f"blocks {span}: the model has {num_blocks} blocks, 0:{num_blocks}")


def _check_report(report: Mapping[str, Any]) -> None:
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise WeightsError(f"{len(missing)} tensors are missing, the first is {missing[0]!r}")
    if report.get("mismatched_keys"):
        name, got, wanted = sorted(report["mismatched_keys"])[0]
        raise WeightsError(f"tensor {name!r} has shape {tuple(got)}, the config says {wanted}")
    if report.get("error_msgs"):
        raise WeightsError(str(report["error_msgs"][0]))


def _span_class(config: PreTrainedConfig, span: Span, layout: Layout) -> type[nn.Module]:
    """Subclass the model so that it throws away what is not the span's as soon as it is built."""
    base = model_class(config)

    def __init__(self: nn.Module, config: PreTrainedConfig) -> None:
        base.__init__(self, config)
        trim(self, span, layout)

    members = {"__init__": __init__, "__module__": base.__module__}
    return type(base.__name__, (base,), members)


def trim(model: nn.Module, span: Span, layout: Layout) -> None:
    """Take out of a whole model all that the span does not need, and renumber its blocks."""
    trunk = layout.trunk_of(model)
    first, last = span.start == 0, span.end == layout.num_blocks
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    kept = list(layout.blocks_of(model))[span.start : span.end]
    setattr(trunk, layout.blocks, nn.ModuleList(kept))
    for index, block in enumerate(kept):
        renumber(block, index)
    if not first:
        for name in layout.before:
            if not (last and tied and getattr(trunk, name) is embedding):
                setattr(trunk, name, Bypass())
    if not last:
        _bypass(trunk, layout.after)
        _bypass(model, _heads(model, layout))
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    model.all_tied_weights_keys = {  # type: ignore[assignment]
        target: origin for target, origin in tied.items() if target in names and origin in names
    }


def _bypass(owner: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        setattr(owner, name, Bypass())


def _heads(model: nn.Module, layout: Layout) -> list[str]:
    """Children of the causal model with weights, other than the branch that holds the trunk."""
    branch = layout.trunk.split(".")[0]
    return [
        name
        for name, child in model.named_children()
        if name != branch and next(child.parameters(), None) is not None
    ]


def renumber(block: nn.Module, index: int) -> None:
    """Set the place of a block among those that run: caches and KV are looked up by it."""
    for module in block.modules():
        for name in NUMBER_NAMES:
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, index)


class _LazyTensor:
    """Looks like a slice of a safetensors file: indexing it reads it."""

    def __init__(self, source: Source, name: str, meter: Meter) -> None:
        self._source = source
        self._name = name
        self._meter = meter

    def __getitem__(self, _: object) -> torch.Tensor:
        tensor = self._source.read(self._name)
        self._meter.advance(tensor.nbytes)
        return tensor

    @property
    def shape(self) -> torch.Size:
        return torch.Size(self._source.tensors()[self._name].shape)

    @property
    def dtype(self) -> torch.dtype:
        return self._source.tensors()[self._name].dtype


def needed_names(
    source: Source, config: PreTrainedConfig, span: Span, layout: Layout
) -> dict[str, str]:
    """Map the names that the span's model gives its tensors to their names in the checkpoint."""
    ignored = getattr(model_class(config), "_keys_to_ignore_on_load_unexpected", None) or ()
    check_block_count(source.tensors(), source.config_dict(), ignored, layout.num_blocks)
    renamed = span_tensors(source.tensors(), span, layout.num_blocks)
    wanted = _wanted_by(config, span, layout)
    return {new: old for new, old in renamed.items() if wanted(new)}


def _wanted_by(config: PreTrainedConfig, span: Span, layout: Layout) -> Callable[[str], bool]:
    """Return whether a (renumbered) checkpoint tensor lands in the span's model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        rename_source_key,
    )

    model = on_meta(_span_class(config, span, layout), config)
    state = model.state_dict()
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]

    def wanted(name: str) -> bool:
        prefix = model.base_model_prefix
        renamed, _ = rename_source_key(name, renamings, converters, prefix, state)
        return renamed in state or name in state

    return wanted


@contextmanager
def _one_by_one() -> Iterator[None]:
    """Have transformers read one tensor after the other.

    Its reader threads keep what they freed after a cast, up to the size of the span.
    """
    before = os.environ.get(_ONE_BY_ONE)
    os.environ[_ONE_BY_ONE] = "1"
    try:
        yield
    finally:
        del os.environ[_ONE_BY_ONE]
        if before is not None:
            os.environ[_ONE_BY_ONE] = before


_ONE_BY_ONE = "HF_DEACTIVATE_ASYNC_LOAD"
