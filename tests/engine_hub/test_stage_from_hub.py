"""The loader asks the hub for its span's tensors and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fetching import REPO, WEIGHTS, blocks, bytes_of, header_size
from hub_server import HubServer
from safetensors.torch import load_file

from swarmd.core.span import Span
from swarmd.engine.checkpoint import open_checkpoint
from swarmd.engine.load import load_stage


@pytest.mark.parametrize(("start", "end", "embedding"), [(0, 2, 1), (2, 4, 0), (4, 6, 1)])
def test_a_stage_costs_its_blocks_and_at_the_ends_the_embedding(
    hub: HubServer, model_dir: Path, start: int, end: int, embedding: int
) -> None:
    checkpoint = open_checkpoint(REPO)
    stage = load_stage(checkpoint, Span(start, end), dtype="bfloat16", kv_memory=1 << 20)

    wanted = bytes_of(checkpoint, blocks(checkpoint, start, end))
    wanted += embedding * bytes_of(checkpoint, ["model.embed_tokens.weight"])
    wanted += (end == 6) * bytes_of(checkpoint, ["model.norm.weight"])
    assert hub.sent(WEIGHTS) == header_size(model_dir / WEIGHTS) + wanted

    stored = load_file(model_dir / WEIGHTS)
    for index in range(end - start):
        linear = stage.model.get_submodule(f"model.layers.{index}.mlp.down_proj")
        assert torch.equal(
            linear.weight, stored[f"model.layers.{start + index}.mlp.down_proj.weight"]
        )
