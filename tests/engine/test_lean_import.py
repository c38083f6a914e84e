"""What is left out at a daemon's start is there for whoever wants it afterwards."""

from __future__ import annotations

import subprocess
import sys


def run(program: str) -> None:
    line = [sys.executable, "-c", program]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_torchs_compiler_is_whole_afterwards() -> None:
    run("""
import sys
from swarmd.engine.lean_import import import_lean

import_lean()
import torch
from transformers import LlamaForCausalLM

assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
ones = torch.ones(2)
assert torch.compile(lambda x: x + 1, backend="eager")(ones).equal(ones + 1)
assert sys.modules["torch._dynamo"] is torch._dynamo
assert torch._dynamo.__file__
""")


def test_a_transformers_that_is_laid_out_differently_is_imported_as_it_is() -> None:
    # It wants a mark that the stand-in does not have.
    run("""
import sys
from swarmd.engine import lean_import

lean_import._MARKS = ()
lean_import.import_lean()
assert "transformers.modeling_utils" not in sys.modules
from transformers import LlamaForCausalLM
assert sys.modules["torch._dynamo"].__file__
""")
