"""A runnable stretch `[entry, exit)` of a span: the same weights behind fresh module objects.

Which stretch runs, and on what, is `swarmd.engine.stage`'s decision.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from swarmd.core.span import Span
from swarmd.engine.layout import Layout, slice_config
from swarmd.engine.module_state import ModuleState, Saved
from swarmd.engine.weights import Bypass, renumber


class View:
    """Runs blocks `[entry, exit)`, from token ids if entry is 0, to logits if exit is the end."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        span: Span,
        entry: int,
        exit: int,
        attention: str | None = None,
    ) -> None:
        """`attention` names a registered attention function; None leaves the model's own."""
        self.entry, self.exit = entry, exit
        self.makes_logits = exit == layout.num_blocks
        whole_config: PreTrainedConfig = model.config
        self.config = slice_config(whole_config, entry, exit)
        if attention is not None:
            self.config._attn_implementation_internal = attention
        self.model = _shallow_copy(model, whole_config, self.config)
        trunk = layout.trunk_of(self.model)
        blocks = list(layout.blocks_of(self.model))[entry - span.start : exit - span.start]
        setattr(trunk, layout.blocks, nn.ModuleList(blocks))
        for index, block in enumerate(blocks):
            renumber(block, index)
        self._entered: torch.Tensor | None = None
        self._left: torch.Tensor | None = None
        if entry > 0:
            _own_hooks(blocks[0]).register_forward_pre_hook(self._enter, with_kwargs=True)
        if not self.makes_logits:
            for name in layout.after:
                setattr(trunk, name, Bypass())
            _own_hooks(blocks[-1]).register_forward_hook(self._leave)
        self.runs = self.model if self.makes_logits else trunk
        self.accepts = _keyword_names(self.runs)
        self.keeps_rows = "logits_to_keep" in self.accepts
        self.cache_argument = next(
            (name for name in _CACHE_ARGUMENTS if name in self.accepts), _CACHE_ARGUMENTS[0]
        )
        self._module_state = ModuleState(self.model) if attention is None else None
        self.left_on_modules: Saved = []
        """What the last run left outside its cache: give it back to `run` to go on from there."""
        self.made_cache: Any = None
        """The cache that the last run returned."""

    def _enter(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Give the first block what came from the stage before, whatever the model made of it.

        Embedding scales, positions and norms were applied by the first stage.
        """
        if args:
            return (self._entered, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._entered}

    def _leave(self, _: nn.Module, __: Any, output: Any) -> None:
        self._left = output[0] if isinstance(output, tuple) else output

    def run(self, rows: torch.Tensor, going_on: Saved | None = None, **kwargs: Any) -> torch.Tensor:
        """Run ids (batch, n) or hidden (batch, n, hidden_size); return logits or hidden states.

        Of the keyword arguments, those go to the model that it knows.
        """
        known = {k: v for k, v in kwargs.items() if k in self.accepts}
        if rows.is_floating_point():
            # Not the rows themselves: some families scale what they are given in place.
            self._entered = rows
            known.setdefault("inputs_embeds", torch.zeros_like(rows))
        else:
            known["input_ids"] = rows
        if self._module_state is None:
            output = self.runs(**known)
        else:
            self._module_state.put(going_on or [])
            try:
                output = self.runs(**known)
            finally:
                self.left_on_modules = self._module_state.take()
        self._entered = None
        self.made_cache = getattr(output, self.cache_argument, None)
        if self.makes_logits:
            return output.logits  # type: ignore[no-any-return]
        left, self._left = self._left, None
        assert left is not None
        return left


_CACHE_ARGUMENTS = ("past_key_values", "cache_params")


def _keyword_names(module: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(module.forward).parameters)


def _own_hooks(module: nn.Module) -> nn.Module:
    """Give a shallow copy its own hook tables, so that hooks do not reach other copies."""
    for name in ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks"):
        module.__dict__[name] = copy.copy(module.__dict__[name])
    return module


def _shallow_copy(
    module: nn.Module, old_config: PreTrainedConfig, new_config: PreTrainedConfig
) -> nn.Module:
    """Copy a tree of modules but not its tensors; `old_config` becomes `new_config` everywhere."""
    fresh = module.__class__.__new__(module.__class__)
    fresh.__dict__.update(module.__dict__)
    fresh.__dict__["_buffers"] = dict(module._buffers)
    for name, value in module.__dict__.items():
        if value is old_config:
            fresh.__dict__[name] = new_config
    fresh.__dict__["_modules"] = {
        name: None if child is None else _shallow_copy(child, old_config, new_config)
        for name, child in module._modules.items()
    }
    return fresh
