"""Streaming a text token by token gives the text that decoding it at once gives."""

from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from swarmd.core.errors import ModelError
from swarmd.text.decoders import compile_decoder
from swarmd.text.detokenizer import IncrementalDetokenizer
from swarmd.text.tokenizer import Tokenizer

ids = st.lists(st.integers(min_value=0, max_value=420), max_size=24)
long_prompts = st.lists(st.integers(min_value=0, max_value=420), max_size=120)


def pushes(
    tokenizer: Tokenizer, output: list[int], prompt: list[int] | None = None, skip: bool = True
) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt or [], skip_special_tokens=skip)
    return [*(detokenizer.push(token_id) for token_id in output), detokenizer.finish()]


@settings(max_examples=150, deadline=None)
@given(output=ids, skip=st.booleans())
def test_any_ids_stream_to_the_text_that_they_decode_to(
    any_kind: Tokenizer, output: list[int], skip: bool
) -> None:
    assert "".join(pushes(any_kind, output, skip=skip)) == any_kind.decode(output, skip)


@settings(max_examples=150, deadline=None)
@given(prompt=long_prompts, output=ids)
def test_after_a_prompt_the_stream_gives_what_the_output_adds_to_it(
    any_kind: Tokenizer, prompt: list[int], output: list[int]
) -> None:
    before, both = any_kind.decode(prompt), any_kind.decode(prompt + output)
    common = takewhile(lambda pair: pair[0] == pair[1], zip(before, both, strict=False))
    added = both[len(list(common)) :]
    assert "".join(pushes(any_kind, output, prompt)) == added


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40))
def test_text_comes_in_whole_characters_that_are_never_taken_back(
    any_kind: Tokenizer, text: str
) -> None:
    output = any_kind.encode(text, add_special_tokens=False)
    whole, so_far = any_kind.decode(output), ""
    for part in pushes(any_kind, output):
        so_far += part
        assert whole.startswith(so_far)


@pytest.mark.parametrize("text", ["🦊", "naïve 東京", "👩‍👩‍👧!", "e\u0301 ende"])
def test_a_character_of_several_tokens_comes_out_whole(
    byte_level_tokenizer: Tokenizer, llama_tokenizer: Tokenizer, text: str
) -> None:
    for tokenizer in (byte_level_tokenizer, llama_tokenizer):
        output = tokenizer.encode(text, add_special_tokens=False)
        parts = pushes(tokenizer, output)
        assert "".join(parts) == text
        assert not any("\ufffd" in part for part in parts)


def test_the_first_word_keeps_its_space_after_a_prompt_and_loses_it_without(
    llama_tokenizer: Tokenizer,
) -> None:
    prompt = llama_tokenizer.encode("the")
    fox = llama_tokenizer.encode("a", add_special_tokens=False)
    assert "".join(pushes(llama_tokenizer, fox, prompt)) == " a"
    assert "".join(pushes(llama_tokenizer, fox)) == "a"
    assert "".join(pushes(llama_tokenizer, fox, [0])) == "a"  # only <s> before it


def test_a_character_begun_in_the_prompt_is_finished_in_the_output(
    byte_level_tokenizer: Tokenizer,
) -> None:
    fox = byte_level_tokenizer.encode("a🦊", add_special_tokens=False)
    assert len(fox) > 2
    assert "".join(pushes(byte_level_tokenizer, fox[-1:], fox[:-1])) == "🦊"


def test_a_long_run_of_bytes_in_the_prompt_counts_whole(llama_tokenizer: Tokenizer) -> None:
    byte = {value: index + 4 for index, value in enumerate(range(256))}
    prompt = [byte[0xFF], *[byte[ord("x")]] * 100]  # one bad byte spoils the run, however far back
    a = llama_tokenizer.encode("a", add_special_tokens=False)[-1]
    assert llama_tokenizer.decode(prompt) == "\ufffd" * 101
    assert "".join(pushes(llama_tokenizer, [byte[ord("y")], a], prompt)) == "\ufffd a"


def test_ordinary_text_is_given_out_token_by_token(byte_level_tokenizer: Tokenizer) -> None:
    output = byte_level_tokenizer.encode("The quick brown fox", add_special_tokens=False)
    parts = pushes(byte_level_tokenizer, output)
    assert all(parts[:-1])
    assert parts[-1] == ""


def test_special_tokens_are_skipped_only_when_asked(byte_level_tokenizer: Tokenizer) -> None:
    output = byte_level_tokenizer.encode("fox</s>", add_special_tokens=False)
    assert "".join(pushes(byte_level_tokenizer, output)) == "fox"
    assert "".join(pushes(byte_level_tokenizer, output, skip=False)) == "fox</s>"


def test_ids_outside_the_vocabulary_give_no_text(byte_level_tokenizer: Tokenizer) -> None:
    assert pushes(byte_level_tokenizer, [10**6, -1, 2**40]) == ["", "", "", ""]


def test_a_long_prompt_costs_no_more_than_its_tail(byte_level_tokenizer: Tokenizer) -> None:
    class Counted(list[int]):
        read = 0

        def __getitem__(self, index):  # type: ignore[no-untyped-def]
            raise AssertionError("only read from the end")

        def __reversed__(self):  # type: ignore[no-untyped-def]
            for token_id in super().__reversed__():
                Counted.read += 1
                yield token_id

    IncrementalDetokenizer(byte_level_tokenizer, Counted([50] * 100_000))
    assert 0 < Counted.read < 100


@pytest.mark.parametrize(
    "decoder",
    [
        {"type": "CTC"},
        {"type": "Replace", "pattern": {"Regex": "a+"}, "content": "b"},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "ByteFallback"}]},
        {"type": "Strip"},
        {"type": "Strip", "content": " ", "start": 0, "stop": 1},
        ["ByteLevel"],
    ],
)
def test_a_decoder_without_a_streaming_twin_is_refused(decoder: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="decoder"):
        compile_decoder(decoder)


def test_every_decoder_of_the_library_is_known_or_refused_by_name() -> None:
    for name in ("ByteFallback", "ByteLevel", "Fuse", "Metaspace", "WordPiece", "BPEDecoder"):
        assert getattr(decoders, name) is not None
        config = {"type": name, "prepend_scheme": "always", "replacement": "▁"}
        compile_decoder(config | {"prefix": "##", "cleanup": True, "suffix": "</w>"})
