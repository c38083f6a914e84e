"""Loads transformers, and lays out models, without what only compilers and clusters use of torch.

`swarmd serve` calls `import_lean` before it imports the daemon; whoever does not has the same
engine, some seconds later.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

_MARKS = ("allow_in_graph", "assume_constant_result", "disable")
"""What functions are marked with for torch's compiler."""
_COMPILER = "torch._dynamo"


def import_lean() -> None:
    """Import what models need of transformers, and no scipy, compiler or cluster with it.

    They are a second of CPU and 100 MiB in each daemon. scipy stays hidden: transformers has it for
    the losses of object detection, numba for products of matrices. A transformers that is laid out
    differently is imported as it is.
    """
    if "transformers.modeling_utils" in sys.modules:
        return
    sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]
    utils: Any = importlib.import_module("transformers.utils")
    for place in (utils, utils.import_utils):
        place.is_torch_distributed_available = lambda: False
    # What has been imported until one failed stays; that one is imported anew by who needs it.
    with contextlib.suppress(Exception), without_compiler():
        importlib.import_module("transformers.masking_utils")
        importlib.import_module("transformers.modeling_utils")


@contextlib.contextmanager
def without_compiler() -> Iterator[None]:
    """Have marks for torch's compiler mean nothing, unless it has been loaded.

    torch loads it, for seconds, when a function that is marked runs first: so do many on the meta
    device. Who asks for more than marks afterwards gets it.
    """
    import torch

    if _COMPILER in sys.modules:
        yield
        return
    bare: Any = types.ModuleType(_COMPILER)
    bare.__path__ = [f"{torch.__path__[0]}/_dynamo"]
    for mark in _MARKS:
        setattr(bare, mark, _unmarked)
    sys.modules[_COMPILER] = torch._dynamo = bare
    try:
        yield
    finally:
        # With its parts, that have come meanwhile: half there, it could not be loaded any more.
        for name in [name for name in sys.modules if f"{name}.".startswith(f"{_COMPILER}.")]:
            del sys.modules[name]
        del torch._dynamo


def _unmarked(
    function: Callable[..., Any] | None = None, *_: object, **__: object
) -> Callable[..., Any]:
    """Return the function as it is, or, called with options alone, what does so."""
    return _unmarked if function is None else function
