"""KV that goes from one stage's tiles to another's: bit for bit, or converted and said so."""

from __future__ import annotations

import logging

import pytest
import torch

from swarmd.cli.demo import demo_model
from swarmd.core.span import Span
from swarmd.engine.checkpoint import open_checkpoint
from swarmd.engine.load import load_stage
from swarmd.engine.stage import Batch, Segment, Stage
from swarmd.node import kv_copy
from swarmd.pipeline.events import Export, Import

A = b"a" * 16
BLOCK = Span(0, 1)
LENGTH = 70


def first_block(dtype: str) -> Stage:
    source = open_checkpoint(str(demo_model()))
    return load_stage(source, BLOCK, dtype=dtype, device="cpu", kv_memory=1 << 20)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_into_another_dtype_is_said_to_be_converted(
    dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    donor, holder = first_block("float32"), first_block(dtype)
    computed, copied = donor.new_cache(), holder.new_cache()
    ids = torch.arange(10, 10 + LENGTH)
    donor.forward(Batch(0, 1, (Segment(computed, 0, LENGTH),), token_ids=ids))
    converted = []
    with caplog.at_level(logging.WARNING):
        for start, end in ((0, 50), (50, LENGTH)):
            taken = kv_copy.export(donor, computed, Export(A, 1, BLOCK, start, end))
            assert taken.blocks is not None
            order = Import(A, 2, BLOCK, start, taken.blocks)
            converted.append(kv_copy.take_in(holder, copied, order))
    theirs, ours = copied.export(0, LENGTH)[0], computed.export(0, LENGTH)[0]
    if dtype == "float32":
        assert converted == [False, False]
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
        assert not caplog.records
    else:
        assert converted == [True, True]
        assert [record.levelname for record in caplog.records] == ["WARNING"], "once"
        assert "from=torch.float32 to=torch.bfloat16" in caplog.text
