"""The text of a session: cut at stop strings; the same for a client that lost its coordinator."""

from __future__ import annotations

import pytest

from swarmd.cli.demo import demo_model
from swarmd.node.output import OutputText
from swarmd.text.tokenizer import Tokenizer

TEXT = "\n    return self.items[0] + other.items[0]\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(demo_model())


def whole(tokenizer: Tokenizer, prompt: list[int], ids: list[int], *stops: str) -> str:
    output = OutputText(tokenizer, prompt, stops)
    text = ""
    for token in ids:
        piece = output.push(token)
        text += piece.text
        if piece.stop is not None:
            return text
    return text + output.finish().text


def test_a_stop_string_ends_the_text_before_it(tokenizer: Tokenizer) -> None:
    prompt, ids = tokenizer.encode("def f():"), tokenizer.encode(TEXT)
    assert whole(tokenizer, prompt, ids) == TEXT
    assert whole(tokenizer, prompt, ids, "+ other") == TEXT[: TEXT.index("+ other")]


def test_without_a_tokenizer_there_is_no_text() -> None:
    output = OutputText(None, [1], ())
    assert output.push(5).text == output.finish().text == ""


@pytest.mark.parametrize("stops", [(), ("other.items",)])
def test_a_resumed_client_gets_exactly_what_it_lacks(
    tokenizer: Tokenizer, stops: tuple[str, ...]
) -> None:
    prompt, ids = tokenizer.encode("def f():"), tokenizer.encode(TEXT)
    undisturbed = whole(tokenizer, prompt, ids, *stops)
    for lost_at in range(len(ids)):
        first = OutputText(tokenizer, prompt, stops)
        text, stopped = "", False
        for token in ids[:lost_at]:
            piece = first.push(token)
            text += piece.text
            stopped = stopped or piece.stop is not None
        if stopped:
            break
        # The client may have got less of the text than of the ids.
        for received in {len(text), len(text) // 2}:
            second = OutputText(tokenizer, prompt, stops)
            rest = second.catch_up(ids[:lost_at], received).text
            for token in ids[lost_at:]:
                piece = second.push(token)
                rest += piece.text
                if piece.stop is not None:
                    break
            else:
                rest += second.finish().text
            assert text[:received] + rest == undisturbed


def test_a_stop_that_only_the_client_missed_is_told_again(tokenizer: Tokenizer) -> None:
    prompt, ids = tokenizer.encode("def f():"), tokenizer.encode(TEXT)
    piece = OutputText(tokenizer, prompt, ("self",)).catch_up(ids, 0)
    assert piece.stop == "self"
    assert piece.text == TEXT[: TEXT.index("self")]
