"""Where a transformers model keeps its blocks, and what runs before and after them.

Found by looking at the model on the meta device, so that no family needs code. What is done with it
is `swarmd.engine.weights`' and `swarmd.engine.stage`'s business.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AttentionMaskInterface,
    PreTrainedConfig,
)
from transformers.initialization import no_init_weights
from transformers.utils import logging

from swarmd.core.errors import ModelError
from swarmd.engine import families
from swarmd.engine.lean_import import without_compiler


@dataclass(frozen=True, slots=True)
class Layout:
    """Parts of a causal language model, by module path and attribute name."""

    family: str
    trunk: str
    """Path of the module that owns the blocks, such as `model`."""
    blocks: str
    """Its attribute with the list of blocks, such as `layers`."""
    num_blocks: int
    before: frozenset[str]
    """Children of the trunk with weights that run before the first block, such as the embedding."""
    after: frozenset[str]
    """Children of the trunk with weights that run after the last block, such as the final norm."""

    def trunk_of(self, model: nn.Module) -> nn.Module:
        return model.get_submodule(self.trunk) if self.trunk else model

    def blocks_of(self, model: nn.Module) -> nn.ModuleList:
        found = getattr(self.trunk_of(model), self.blocks)
        assert isinstance(found, nn.ModuleList)
        return found


MAX_BLOCKS = 4096
"""As many as a route can name; a config that says more would build for hours before it fails."""


def parse_config(config_dict: dict[str, Any]) -> PreTrainedConfig:
    """Build the transformers config. Raises ModelError for families unknown to this version."""
    model_type = str(config_dict.get("model_type") or "")
    if model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"model family {model_type!r} is not one that the installed transformers knows; "
            "code that comes with a model is never run"
        )
    families.refuse_unsplittable(model_type)
    try:
        plain = PreTrainedConfig._decode_special_floats(config_dict)
        with quiet():
            config: PreTrainedConfig = CONFIG_MAPPING[model_type].from_dict(plain)
    except Exception as error:
        raise ModelError(f"config.json of this {model_type} model is not valid: {error}") from error
    families.refuse_unsplittable(model_type, is_encoder_decoder=config.is_encoder_decoder)
    if config.get_text_config(decoder=True) is not config:
        raise ModelError(
            f"models of family {model_type!r} read more than text; only text models can be served"
        )
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int) or not 1 <= count <= MAX_BLOCKS:
        raise ModelError(f"config.json says {count!r} blocks; a model has 1 to {MAX_BLOCKS}")
    if getattr(config, "num_kv_shared_layers", 0):
        raise ModelError(
            f"the last {config.num_kv_shared_layers} blocks of this {model_type} model use the "
            "keys and values of earlier ones, so they cannot be served by different nodes"
        )
    return config


def model_class(config: PreTrainedConfig) -> type[nn.Module]:
    """Return the causal language model class for a config. Raises ModelError if there is none."""
    try:
        found: type[nn.Module] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise ModelError(
            f"models of family {config.model_type!r} do not generate text from text"
        ) from None
    return found


def on_meta(built: type[nn.Module], config: PreTrainedConfig) -> Any:
    """Build a model without any weights. Raises ModelError when the config contradicts itself."""
    try:
        with quiet(), without_compiler(), torch.device("meta"), no_init_weights():
            return built._from_config(copy.deepcopy(config))  # type: ignore[attr-defined]
    except Exception as error:
        raise ModelError(
            f"this {config.model_type} model cannot be built from its config: {error}"
        ) from error


def find_layout(config: PreTrainedConfig) -> Layout:
    """Look at the model that `config` describes. Raises ModelError if it is no chain of blocks."""
    model = on_meta(model_class(config), config)
    num_blocks = int(config.num_hidden_layers)
    trunk, blocks = _find_blocks(model, num_blocks, config.model_type)
    owner = model.get_submodule(trunk) if trunk else model
    if "inputs_embeds" not in inspect.signature(owner.forward).parameters:
        raise ModelError(
            f"models of family {config.model_type!r} cannot be entered between blocks: their "
            f"{type(owner).__name__} takes no hidden states from outside"
        )
    _check_numbering(getattr(owner, blocks), config.model_type)
    weighty = {
        name
        for name, child in owner.named_children()
        if name != blocks and next(child.parameters(), None) is not None
    }
    before = _runs_before_blocks(model, owner, getattr(owner, blocks)[0], weighty)
    after = frozenset(weighty - before)
    return Layout(config.model_type, trunk, blocks, num_blocks, frozenset(before), after)


def _find_blocks(model: nn.Module, num_blocks: int, family: str) -> tuple[str, str]:
    """Return (path of the owner, attribute) of the shallowest list of `num_blocks` modules."""
    found = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == num_blocks
    ]
    if not found:
        raise ModelError(f"models of family {family!r} have no list of {num_blocks} blocks")
    path = min(found, key=lambda p: p.count("."))
    owner, _, name = path.rpartition(".")
    return owner, name


def _check_numbering(blocks: nn.ModuleList, family: str) -> None:
    """Caches are found by the number that a block's modules carry, so there must be one each."""
    for index, block in enumerate(blocks):
        numbers = {number for module in block.modules() for number in block_numbers(module)}
        if numbers - {index}:
            raise ModelError(
                f"block {index} of family {family!r} keeps caches under the numbers "
                f"{sorted(numbers)}, so it cannot be moved to another place"
            )


NUMBER_NAMES = ("layer_idx", "layer_id")
"""Attributes in which modules of a block keep its place."""


def block_numbers(module: nn.Module) -> list[int]:
    """Return the places that a module says it has."""
    found = [getattr(module, name, None) for name in NUMBER_NAMES]
    return [number for number in found if isinstance(number, int)]


class _ReachedBlocksError(Exception):
    """Ends the trace at the first block."""


def _runs_before_blocks(
    model: nn.Module, owner: nn.Module, first_block: nn.Module, names: set[str]
) -> set[str]:
    """Run the model on the meta device up to its first block; return which children it called."""
    called: set[str] = set()
    with contextlib.ExitStack() as hooks:
        for name in names:
            hooks.enter_context(_on_call(getattr(owner, name), lambda name=name: called.add(name)))
        hooks.enter_context(_on_call(first_block, _stop))
        hooks.enter_context(without_compiler())
        _run_to_first_block(model)
    return called


def _run_to_first_block(model: nn.Module) -> None:
    """Masks are made by looking at values, of which tensors on the meta device have none.

    So either no masks are made (an attention name without a mask function), or, for families that
    compute with the masks on the way, empty ones.
    """
    AttentionMaskInterface.register("swarmd_empty_masks", _empty_mask)
    _make_positions_plain(model)
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    problem: Exception | None = None
    for masks, padding in (
        ("swarmd_no_masks", {}),
        ("swarmd_empty_masks", {"attention_mask": torch.ones_like(ids)}),
    ):
        set_attention(model, masks)
        try:
            model(input_ids=ids, use_cache=False, **padding)
        except _ReachedBlocksError:
            return
        except Exception as error:
            problem = error
    raise ModelError(f"the way to this model's first block is not clear: {problem}") from problem


def _make_positions_plain(model: nn.Module) -> None:
    """Scaled positions look at values too; which way they are scaled does not matter here."""
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, dict):
            module.rope_type = dict.fromkeys(kind, "default")  # type: ignore[assignment]
        elif isinstance(kind, str):
            module.rope_type = "default"  # type: ignore[assignment]


def set_attention(model: nn.Module, name: str) -> None:
    """Have a model look up its attention function under this name, without asking it."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PreTrainedConfig):
            config._attn_implementation_internal = name


def _empty_mask(*, q_length: int, kv_length: int, **_: Any) -> torch.Tensor:
    return torch.zeros(1, 1, q_length, kv_length, device="meta")


def _stop() -> None:
    raise _ReachedBlocksError


@contextlib.contextmanager
def _on_call(module: nn.Module, action: Any) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda *_: (action(), None)[1])
    try:
        yield
    finally:
        handle.remove()


def slice_config(config: PreTrainedConfig, start: int, end: int) -> PreTrainedConfig:
    """Copy a config as if the model had only blocks `[start, end)`: length and per-block lists."""
    count = int(config.num_hidden_layers)
    sliced = copy.deepcopy(config)
    if (start, end) == (0, count):
        return sliced
    for name, value in vars(config).items():
        if isinstance(value, list) and len(value) == count and name not in _NOT_PER_BLOCK:
            # Past __setattr__: some configs check each list against the number of blocks.
            sliced.__dict__[name] = value[start:end]
    sliced.num_hidden_layers = end - start
    computed = _computed_lists(config, sliced, start, end)
    if computed:
        kind = type(config)
        sliced.__class__ = type(kind.__name__, (kind,), computed)
    return sliced


_NOT_PER_BLOCK = {"architectures", "eos_token_id", "bos_token_id", "pad_token_id"}


def _computed_lists(
    config: PreTrainedConfig, sliced: PreTrainedConfig, start: int, end: int
) -> dict[str, Any]:
    """Return per-block properties that the sliced config computes as if it began at block 0."""
    fixed: dict[str, Any] = {}
    for name in _own_properties(type(config)):
        value = getattr(config, name, None)
        if isinstance(value, list) and len(value) == config.num_hidden_layers:
            wanted = value[start:end]
            if getattr(sliced, name) != wanted:
                fixed[name] = wanted
    return fixed


def _own_properties(kind: type) -> list[str]:
    """Names of the properties that a config class adds to those of every config."""
    own = [c for c in kind.__mro__ if issubclass(c, PreTrainedConfig) and c is not PreTrainedConfig]
    return [name for c in own for name, value in vars(c).items() if isinstance(value, property)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own progress bars and load reports off the terminal."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
