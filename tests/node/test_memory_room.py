"""What does not fit the memory is refused before it is loaded, with the numbers."""

from __future__ import annotations

import pytest

from swarmd.cli.demo import demo_model
from swarmd.core.config import NodeConfig
from swarmd.core.errors import ConfigError
from swarmd.core.span import Span
from swarmd.node import loading


def check(config: NodeConfig) -> None:
    opened = loading.open_model(config)
    loading.check_memory(config, opened, Span(0, opened.info.num_blocks))


def test_more_kv_than_the_machine_has_is_refused_with_what_is_left() -> None:
    config = NodeConfig(model=str(demo_model()), kv_memory=1 << 50)
    with pytest.raises(ConfigError, match=r"--kv-memory 1,073,741,824 MiB.*MiB are left for KV"):
        check(config)


def test_weights_that_do_not_fit_are_refused_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loading, "free_memory", lambda device: 1 << 20)
    config = NodeConfig(model=str(demo_model()), blocks="0:8")
    with pytest.raises(ConfigError, match=r"weights of blocks 0:8 take .* MiB .* 1 MiB of memory"):
        check(config)
