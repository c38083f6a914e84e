"""Ids and text are those of transformers; files of strangers give errors, not crashes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizer_kinds import KINDS, byte_level, llama, write_json  # type: ignore[import-not-found]

from swarmd.core.errors import ModelError, RequestError
from swarmd.text import model_files
from swarmd.text.tokenizer import MAX_TEXT_CHARS, Tokenizer

DEMO = Path(__file__).parents[2] / "swarmd" / "demo_model"
TEXTS = ("Hello fox", " two  spaces", "東京 🦊\n", "<s>fox</s><tool>", "", "def main():\n    pass")


def assert_equal_to_transformers(directory: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(directory)
    ours = Tokenizer.from_dir(directory)
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids
            for skip in (True, False):
                text_of_ids = theirs.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                )
                assert ours.decode(ids, skip_special_tokens=skip) == text_of_ids
    assert ours.vocab_size == len(theirs)
    assert ours.bos_token_id == theirs.bos_token_id
    assert dict(ours.special_tokens) == theirs.special_tokens_map


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_equal_those_of_transformers(kind: str, model_dir: Path) -> None:
    KINDS[kind]().save(str(model_dir / "tokenizer.json"))
    assert_equal_to_transformers(model_dir)


def test_bos_and_eos_are_added_as_the_file_says(model_dir: Path) -> None:
    llama().save(str(model_dir / "tokenizer.json"))
    config = json.loads((model_dir / "tokenizer_config.json").read_text())
    write_json(model_dir / "tokenizer_config.json", config | {"add_eos_token": True})
    assert_equal_to_transformers(model_dir)
    ours = Tokenizer.from_dir(model_dir)
    assert ours.encode("the")[0] == 0
    assert 0 not in ours.encode("the", add_special_tokens=False)


def test_tokens_that_only_the_config_knows_are_added(model_dir: Path) -> None:
    config = json.loads((model_dir / "tokenizer_config.json").read_text())
    extra = {"content": "<think>", "special": False, "normalized": False}
    write_json(
        model_dir / "tokenizer_config.json",
        config | {"pad_token": "<pad>", "added_tokens_decoder": {"402": extra}},
    )
    assert_equal_to_transformers(model_dir)
    ours = Tokenizer.from_dir(model_dir)
    assert len(ours.encode("<think>")) == len(ours.encode("<pad>")) == 1
    assert ours.decode(ours.encode("<think><pad>")) == "<think>"


def test_the_special_tokens_map_is_read_when_the_config_has_no_tokens(model_dir: Path) -> None:
    write_json(model_dir / "special_tokens_map.json", {"eos_token": {"content": "<|im_end|>"}})
    assert_equal_to_transformers(model_dir)
    assert Tokenizer.from_dir(model_dir).eos_token_ids == (2,)


def test_truncation_and_padding_of_training_are_off(model_dir: Path) -> None:
    backend = byte_level()
    backend.enable_truncation(3)
    backend.enable_padding(length=64)
    backend.save(str(model_dir / "tokenizer.json"))
    ours = Tokenizer.from_dir(model_dir)
    assert 3 < len(ours.encode("The quick brown fox")) < 64


@pytest.mark.parametrize(
    ("generation", "model", "expected"),
    [
        ({"eos_token_id": [2, 1]}, {"eos_token_id": 1}, (2, 1)),
        ({"eos_token_id": 2}, {}, (2,)),
        ({}, {"eos_token_id": 2}, (2,)),
        ({}, {"text_config": {"eos_token_id": [2]}}, (2,)),
        ({"eos_token_id": None}, {"eos_token_id": -1}, (1,)),
        ({}, {}, (1,)),
    ],
)
def test_the_end_is_asked_of_generation_config_then_config_then_tokenizer(
    model_dir: Path,
    generation: dict[str, object],
    model: dict[str, object],
    expected: tuple[int, ...],
) -> None:
    write_json(model_dir / "generation_config.json", generation)
    write_json(model_dir / "config.json", model)
    assert Tokenizer.from_dir(model_dir).eos_token_ids == expected


def test_a_gpt2_tokenizer_is_built_from_vocab_and_merges(tmp_path: Path) -> None:
    backend = byte_level()
    model = json.loads(backend.to_str())["model"]
    write_json(tmp_path / "vocab.json", model["vocab"])
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    write_json(tmp_path / "config.json", {"model_type": "gpt2"})
    for config in ({}, {"add_bos_token": True, "bos_token": "</s>"}, {"add_prefix_space": True}):
        write_json(
            tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"} | config
        )
        assert_ids_equal_gpt2(tmp_path)


def assert_ids_equal_gpt2(directory: Path) -> None:
    from transformers import GPT2Tokenizer

    theirs, ours = GPT2Tokenizer.from_pretrained(directory), Tokenizer.from_dir(directory)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(
            theirs.encode(text), skip_special_tokens=True
        )


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.txt", None])
def test_a_directory_without_tokenizer_json_is_told_how_to_convert(
    tmp_path: Path, name: str | None
) -> None:
    if name:
        (tmp_path / name).write_bytes(b"\0")
    with pytest.raises(ModelError, match=r"no tokenizer\.json.*save_pretrained") as caught:
        Tokenizer.from_dir(tmp_path)
    assert name is None or name in str(caught.value)


def test_other_families_are_not_built_from_vocab_and_merges(tmp_path: Path) -> None:
    write_json(tmp_path / "vocab.json", {"a": 0})
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"})
    with pytest.raises(ModelError, match=r"only vocab\.json"):
        Tokenizer.from_dir(tmp_path)


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not a directory"):
        Tokenizer.from_dir(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer.json", b'{"version": "1.0"}'),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": 1}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"7": {"colour": "red"}}}'),
        ("special_tokens_map.json", b"null"),
        ("generation_config.json", b'{"eos_token_id": "two"}'),
        ("generation_config.json", b'{"eos_token_id": [1.5]}'),
        ("generation_config.json", b'{"eos_token_id": ' + str(list(range(1000))).encode() + b"}"),
        ("config.json", b"not json"),
    ],
)
def test_damaged_files_are_model_errors(model_dir: Path, name: str, content: bytes) -> None:
    (model_dir / name).write_bytes(content)
    with pytest.raises(ModelError):
        Tokenizer.from_dir(model_dir)


def test_a_file_over_its_limit_is_not_read(model_dir: Path) -> None:
    (model_dir / "config.json").write_bytes(b" " * (model_files.MAX_JSON_BYTES + 1))
    with pytest.raises(ModelError, match="larger than"):
        Tokenizer.from_dir(model_dir)


def test_text_that_is_no_text_is_refused(byte_level_tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="Unicode"):
        byte_level_tokenizer.encode("\ud800")
    with pytest.raises(RequestError, match="at most"):
        byte_level_tokenizer.encode("a" * (MAX_TEXT_CHARS + 1))


def test_decoding_skips_ids_that_do_not_exist(byte_level_tokenizer: Tokenizer) -> None:
    fox = byte_level_tokenizer.encode("fox")
    assert byte_level_tokenizer.decode([-5, *fox, 10**7, 2**40]) == "fox"


@pytest.mark.skipif(not (DEMO / "tokenizer.json").exists(), reason="no demo model yet")
def test_the_demo_model_has_a_tokenizer_that_loads() -> None:
    assert_equal_to_transformers(DEMO)
    assert Tokenizer.from_dir(DEMO).eos_token_ids


def test_the_room_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, swarmd.text.tokenizer, swarmd.text.detokenizer, swarmd.text.stop;"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_while_a_long_text_is_read_other_threads_run() -> None:
    """The event loop among them, which feeds everybody's streams."""
    tokenizer, done = Tokenizer.from_dir(DEMO), threading.Event()
    ran = [time.monotonic()]

    def run() -> None:
        while not done.wait(0.001):
            ran.append(time.monotonic())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        began = time.monotonic()
        assert len(tokenizer.encode("a" * 1_000_000)) > 900_000
        took = time.monotonic() - began
    finally:
        done.set()
        thread.join()
    ran.append(time.monotonic())
    longest = max(after - before for before, after in pairwise(ran))
    assert longest < took / 2, "others stood still for all of it"
