"""When a machine has no memory left, one session pays for it: the others and the daemon go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from swarmd.cli.demo import demo_model
from swarmd.core.span import Span
from swarmd.engine.checkpoint import open_checkpoint
from swarmd.engine.exhaustion import is_exhaustion
from swarmd.engine.load import load_stage
from swarmd.engine.stage import Batch, Segment
from swarmd.node.account import StageAccount


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced by Linux")
def test_without_memory_one_session_fails_by_name_and_its_mates_stay_exact() -> None:
    script = Path(__file__).with_name("out_of_memory.py")
    done = subprocess.run((sys.executable, script), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert "allocate" in said.pop("message")
    assert said == {"exhausted": True, "exact": True, "again": True, "alive": True}


def test_what_allocators_raise_is_known_and_other_errors_are_not_taken_for_it() -> None:
    with pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_exhaustion(failed.value)
    assert is_exhaustion(MemoryError())
    assert is_exhaustion(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_exhaustion(RuntimeError("shapes do not fit"))
    assert not is_exhaustion(ValueError("can't allocate memory"))


def test_the_budget_counts_what_is_allocated() -> None:
    source = open_checkpoint(str(demo_model()))
    stage = load_stage(source, Span(0, 2), dtype="float32", device="cpu", kv_memory=1 << 20)
    cache = stage.new_cache()
    for position, length in ((0, 1), (1, 63), (64, 1)):
        ids = torch.zeros(length, dtype=torch.long)
        stage.forward(Batch(0, 2, (Segment(cache, position, length),), token_ids=ids))
        assert cache.nbytes == stage.kv_bytes(position + length, 0, 2)
    account = StageAccount(stage)
    most = account.capacity(Span(0, 2))
    assert account.reserve(b"one", Span(0, 2), most)
    assert not account.reserve(b"one", Span(0, 2), most + 1)
