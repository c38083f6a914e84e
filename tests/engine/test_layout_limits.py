"""A config's number of blocks is believed only within bounds."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig

from swarmd.core.errors import ModelError
from swarmd.engine.layout import parse_config


@pytest.mark.parametrize("count", [0, -1, 4097, 10**9])
def test_a_number_of_blocks_that_no_model_has_is_refused(count: int) -> None:
    config = LlamaConfig(num_hidden_layers=2).to_dict() | {"num_hidden_layers": count}
    with pytest.raises(ModelError, match=str(count)):
        parse_config(config)


def test_a_real_number_of_blocks_is_taken() -> None:
    config = LlamaConfig(num_hidden_layers=2).to_dict()
    assert parse_config(config).num_hidden_layers == 2
