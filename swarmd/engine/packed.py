"""Linear layers whose bfloat16 weights lie as the CPU's kernel wants them.

A plain bfloat16 linear rearranges its weights at every call, which for a few rows takes as long as
the product itself; where the CPU has no instructions for bfloat16, it takes six times as long.
Which rows come together is `swarmd.engine.stage`'s business; what the results are worth,
`swarmd.engine.probe` finds out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from threading import Event
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class PackedLinear(nn.Module, ABC):
    """An `nn.Linear` in bfloat16, without gradients for its weights, in a layout of its own."""

    has_rows = False
    """Whether single rows of the weights can be read."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.packed = self._pack(plain.weight.detach())
        self.bias = plain.bias
        self.training = plain.training
        self.was_read = Event()
        """Set when somebody takes the weights out instead of calling the layer; copies share it."""

    @staticmethod
    @abstractmethod
    def _pack(weight: torch.Tensor) -> torch.Tensor:
        """Return the weights (out_features, in_features) in this layout."""

    @abstractmethod
    def _unpacked(self) -> torch.Tensor:
        """Return the weights (out_features, in_features), made anew."""

    @abstractmethod
    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) of (..., in_features), bias included."""

    @property
    def weight(self) -> torch.Tensor:
        """The weights (out_features, in_features), made anew at each call."""
        self.was_read.set()
        return self._unpacked()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) of (..., in_features)."""
        if torch.is_grad_enabled() or rows.dtype != torch.bfloat16:
            return functional.linear(rows, self._unpacked(), self.bias)
        return self._product(rows)

    def embedding(self) -> nn.Module:
        """Return an embedding of the same weights without a copy, where `has_rows`."""
        raise NotImplementedError

    def to_linear(self) -> nn.Linear:
        """Return the plain layer with the same weights."""
        plain = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(self._unpacked(), requires_grad=False)
        plain.bias = self.bias
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, packed"


class OneDnnLinear(PackedLinear):
    """In oneDNN's blocked layout. Gives the bits of the plain layer, from two rows up."""

    @staticmethod
    def _pack(weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(weight, None)  # type: ignore[no-any-return]

    def _unpacked(self) -> torch.Tensor:
        return self.packed.to_dense()

    def _product(self, rows: torch.Tensor) -> torch.Tensor:
        op = torch.ops.mkldnn._linear_pointwise
        return op(rows, self.packed, self.bias, "none", [], "")  # type: ignore[no-any-return]


def has_onednn() -> bool:
    """Whether this build of torch and this CPU have oneDNN's kernel for bfloat16."""
    ops = torch.ops.mkldnn
    names = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")
    return all(hasattr(ops, name) for name in names) and bool(ops._is_mkldnn_bf16_supported())


def best_layout() -> type[PackedLinear] | None:
    """Return the layout for this machine's CPU; None: weights stay as they are."""
    if has_onednn():
        return OneDnnLinear
    from swarmd.engine import panels

    return panels.PanelLinear if panels.usable() else None


def pack(model: nn.Module, *, embeds: bool = True) -> int:
    """Pack every linear layer in bfloat16 on the CPU, in place, one by one; return how many.

    Weights that two layers share stay as they are: packed, they would be there twice. An embedding
    that shares the head's reads its rows from there, if the layout lets it; with `embeds` False
    nobody asks it for rows, and the head gets them alone.
    """
    # First of all: to know the layout may take compiling its kernel.
    layout = best_layout() if any(map(_packable, model.modules())) else None
    if layout is None:
        return 0
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    count = 0
    if head is not None and getattr(embedding, "weight", None) is getattr(head, "weight", 0):
        count = _untie(model, embedding, head, layout, embeds)
    shared = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return count + _replace(model, layout, lambda m: _packable(m) and shared[id(m.weight)] == 1)


def _untie(
    model: nn.Module,
    embedding: Any,
    head: Any,
    layout: type[PackedLinear],
    embeds: bool,
) -> int:
    """Leave the weights that an embedding shares with the head to the head; return 1 if packed."""
    if not embeds:
        # Its shape and type can be seen yet.
        embedding.weight = nn.Parameter(embedding.weight.to("meta"), requires_grad=False)
        return 0
    if not layout.has_rows or not _packable(head):
        return 0
    if type(embedding) is not nn.Embedding or embedding.max_norm is not None:
        return 0
    packed = layout(head)
    _replace(model, lambda _: packed, lambda m: m is head)
    _replace(model, lambda _: packed.embedding(), lambda m: m is embedding)
    return 1


def _packable(module: nn.Module) -> bool:
    if type(module) is not nn.Linear:
        return False
    hooked = module._forward_hooks or module._forward_pre_hooks
    weight = module.weight
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and not hooked


def unpack_those_read(model: nn.Module) -> int:
    """Make plain again what somebody reads the weights of; return how many."""
    return _replace(
        model, PackedLinear.to_linear, lambda m: isinstance(m, PackedLinear) and m.was_read.is_set()
    )


def _replace(
    model: nn.Module, make: Callable[[Any], nn.Module], chosen: Callable[[nn.Module], bool]
) -> int:
    """Put `make(layer)` in the place of every chosen layer; each one goes as the next comes."""
    places = [(parent, name) for parent in model.modules() for name in parent._modules]
    count = 0
    for parent, name in places:
        child = parent._modules[name]
        if child is not None and chosen(child):
            parent._modules[name] = make(child)
            count += 1
    return count
