"""What a stage finds out about itself holds for the threads that compute it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from swarmd.cli.demo import demo_model
from swarmd.core.config import NodeConfig
from swarmd.core.span import Span
from swarmd.engine.load import Threads
from swarmd.engine.precision import precision_of
from swarmd.node import loading


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("asked", "wanted"), [(None, 3), (2, 2)])
def test_the_probes_run_with_as_many_threads_as_steps_do(
    asked: int | None, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "default_threads", lambda: Threads(3, "four cores"))
    config = NodeConfig(model=str(demo_model()), threads=asked, dtype="bfloat16")
    stage = loading.load(config, loading.open_model(config), Span(3, 4))
    torch.set_num_threads(7)
    assert stage.precision != precision_of(stage)
    torch.set_num_threads(wanted)
    assert stage.precision == precision_of(stage)
    assert loading.threads_of(config) == wanted
