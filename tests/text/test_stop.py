"""Stop strings are found wherever the pushes are cut, and nothing of them leaks out."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import RequestError
from swarmd.text.stop import MAX_STOP_CHARS, MAX_STOPS, StopStrings

# Few letters, so that stop strings occur, overlap and begin without ending.
texts = st.lists(st.text(alphabet="ab\u00e9", max_size=6), max_size=12)
stop_lists = st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=5), max_size=4)


def naive(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end if include else end - len(stop)], stop
    return text, None


@settings(max_examples=500, deadline=None)
@given(parts=texts, stops=stop_lists, include=st.booleans())
def test_a_stream_in_parts_stops_where_the_whole_text_would(
    parts: list[str], stops: list[str], include: bool
) -> None:
    watcher = StopStrings(stops, include_stop=include)
    emitted = ""
    for part in parts:
        emit, stopped = watcher.push(part)
        emitted += emit
        if stopped is not None:
            break
    assert (emitted + watcher.finish(), watcher.stopped) == naive("".join(parts), stops, include)


@settings(max_examples=300, deadline=None)
@given(parts=texts, stops=stop_lists)
def test_no_more_is_held_back_than_could_begin_a_stop_string(
    parts: list[str], stops: list[str]
) -> None:
    watcher = StopStrings(stops)
    so_far, emitted = "", ""
    for part in parts:
        emit, stopped = watcher.push(part)
        so_far, emitted = so_far + part, emitted + emit
        if stopped is not None:
            return
        held = so_far[len(emitted) :]
        assert so_far == emitted + held
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_string_across_three_tokens() -> None:
    watcher = StopStrings(["\n\nUser:"])
    assert watcher.push("Yes.\n") == ("Yes.", None)
    assert watcher.push("\nUs") == ("", None)
    assert watcher.push("er: hello") == ("", "\n\nUser:")
    assert watcher.push("more") == ("", "\n\nUser:")
    assert watcher.finish() == ""


def test_a_beginning_that_comes_to_nothing_is_released() -> None:
    watcher = StopStrings(["</s>"])
    assert watcher.push("a <") == ("a ", None)
    assert watcher.push("b") == ("<b", None)
    assert watcher.push("</") == ("", None)
    assert watcher.finish() == "</"


def test_the_stop_string_is_in_the_output_only_when_asked() -> None:
    assert StopStrings(["END"]).push("the END.") == ("the ", "END")
    assert StopStrings(["END"], include_stop=True).push("the END.") == ("the END", "END")


def test_with_stops_included_nothing_is_held_back() -> None:
    watcher = StopStrings(["END"], include_stop=True)
    assert watcher.push("the EN") == ("the EN", None)
    assert watcher.push("D.") == ("D", "END")


def test_without_stop_strings_text_passes() -> None:
    assert StopStrings([]).push("anything") == ("anything", None)


@pytest.mark.parametrize(
    "stops", ["END", [""], ["x"] * (MAX_STOPS + 1), ["x" * (MAX_STOP_CHARS + 1)]]
)
def test_unreasonable_stop_strings_are_refused(stops: list[str]) -> None:
    with pytest.raises(RequestError):
        StopStrings(stops)
