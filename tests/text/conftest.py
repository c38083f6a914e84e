"""Tokenizers as fixtures."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizer_kinds import KINDS, byte_level, llama, write_json  # type: ignore[import-not-found]

from swarmd.text.tokenizer import Tokenizer


@pytest.fixture(scope="session", params=KINDS)
def any_kind(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(KINDS[request.param]())


@pytest.fixture(scope="session")
def llama_tokenizer() -> Tokenizer:
    return Tokenizer(llama())


@pytest.fixture(scope="session")
def byte_level_tokenizer() -> Tokenizer:
    return Tokenizer(byte_level())


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    """A directory with the files of a byte-level tokenizer, to be changed by the test."""
    byte_level().save(str(tmp_path / "tokenizer.json"))
    write_json(
        tmp_path / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<s>",
            "eos_token": {"content": "</s>", "__type": "AddedToken"},
        },
    )
    return tmp_path
