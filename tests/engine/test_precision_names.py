"""Equal precisions stand for equal bits: what changes the last bits changes the name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from swarmd.core.peers import MAX_PRECISION
from swarmd.engine import packed, precision, tile_attention
from swarmd.engine.precision import name_of, precision_of


class Loaded:
    """What of a stage its precision depends on."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16, *, ragged: bool = True) -> None:
        self.dtype, self.device, self.ragged = dtype, torch.device("cpu"), ragged


def of(*arguments: Any, **options: Any) -> str:
    return precision_of(Loaded(*arguments, **options))  # type: ignore[arg-type]


def test_two_alike_have_the_same_short_name() -> None:
    assert of() == of()
    dtype, _, digits = of().partition("/")
    assert (dtype, len(digits)) == ("bfloat16", precision.DIGITS)
    assert len(of()) <= MAX_PRECISION


def test_in_float32_the_last_bits_do_not_tell() -> None:
    assert of(torch.float32) == of(torch.float32, ragged=False) == "float32"


def test_what_else_changes_bits_changes_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [of(), of(torch.float16), of(ragged=False)]

    def with_other(module: Any, name: str, value: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, value)
            names.append(of())

    with_other(torch, "__version__", "9.9.9")
    with_other(torch, "get_num_threads", lambda: 77)
    with_other(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
    with_other(packed, "best_layout", lambda: nn.Linear)
    has_kernel = tile_attention.available(torch.device("cpu"), torch.bfloat16)
    with_other(tile_attention, "available", lambda device, dtype: not has_kernel)
    assert len(set(names)) == len(names)
    assert of() == names[0]


def test_circumstances_are_not_run_together() -> None:
    assert name_of("float16", ["1", "2"]) != name_of("float16", ["12"])
