"""Which peers a prompt is sent to, and which of several alike goes first."""

from __future__ import annotations

from swarmd.node.prompt_book import PromptBook

A, B, C = b"a", b"b", b"c"


def keys(text: str) -> list[bytes]:
    """`"abc"` is the prompt of the units a, ab and abc."""
    return [text[: end + 1].encode() for end in range(len(text))]


def test_a_peer_has_what_it_computed_up_to_the_first_unit_that_it_has_not() -> None:
    book = PromptBook(64)
    book.learn(keys("system"), ["p", "q"])
    book.learn(keys("systems"), ["q"])
    assert book.held(keys("systemic")) == {"p": 384, "q": 384}
    assert book.held(keys("systems?")) == {"p": 384, "q": 448}
    assert book.held(keys("other")) == {}


def test_a_peer_that_has_less_than_was_thought_is_believed() -> None:
    book = PromptBook(64)
    book.learn(keys("system"), ["p", "q"])
    book.correct(keys("system"), "p", 130)
    assert book.held(keys("system")) == {"p": 128, "q": 384}


def test_what_was_not_used_for_long_is_forgotten_ends_first() -> None:
    book = PromptBook(64, max_keys=6)
    book.learn(keys("abcd"), ["p"])
    book.learn(keys("wxyz"), ["p"])
    assert book.held(keys("wxyz")) == {"p": 256}
    assert book.held(keys("abcd")) == {"p": 128}


def test_of_prompts_that_begin_alike_one_goes_first() -> None:
    book = PromptBook(64)
    assert book.begin(A, keys("system one"))
    assert not book.begin(B, keys("system two"))
    assert not book.begin(C, keys("system six"))
    book.learn(keys("system one"), ["p"])
    assert book.done(A) == [B, C]
    # What they share is there now, and what is left of each is its own.
    assert book.begin(B, keys("system two"))
    assert book.begin(C, keys("system six"))


def test_when_the_first_comes_to_nothing_the_next_goes_first() -> None:
    book = PromptBook(64)
    assert book.begin(A, keys("system one"))
    assert not book.begin(B, keys("system two"))
    assert not book.begin(C, keys("system six"))
    assert book.done(A) == [B, C]
    assert book.begin(B, keys("system two"))
    assert not book.begin(C, keys("system six"))


def test_nobody_waits_long_for_little() -> None:
    book = PromptBook(64)
    assert book.begin(A, keys("a very long prompt"))
    assert book.begin(B, keys("a short one"))
    assert book.begin(C, keys("different"))
    assert book.done(C) == []
    assert book.done(C) == []


def test_a_prompt_without_units_waits_for_nobody() -> None:
    book = PromptBook(64)
    assert book.begin(A, [])
    assert book.begin(B, [])
    nothing_is_shared = PromptBook(0)
    nothing_is_shared.correct([], "p", 0)
    assert nothing_is_shared.held([]) == {}
    assert nothing_is_shared.begin(A, [])


def test_one_at_a_time_computes_anew_what_others_have() -> None:
    book = PromptBook(64)
    book.learn(keys("system one"), ["p", "q"])
    book.goes(A, keys("system two"), ["p", "q"])
    assert not book.is_spread(keys("system six"))
    book.goes(B, keys("system two"), ["p", "r"])
    assert book.is_spread(keys("system six"))
    assert not book.is_spread(keys("other"))
    book.learn(keys("system two"), ["p", "r"])
    book.done(B)
    assert not book.is_spread(keys("system six"))
    book.goes(C, keys("system six"), ["p", "r"])
    assert not book.is_spread(keys("system ten")), "it has become a holder itself"


def test_one_that_comes_to_nothing_keeps_nobody() -> None:
    book = PromptBook(64)
    book.learn(keys("system one"), ["p"])
    book.goes(A, keys("system two"), ["q"])
    assert book.is_spread(keys("system six"))
    assert book.done(A) == []
    assert not book.is_spread(keys("system six"))


def test_a_peer_that_is_lost_holds_nothing_any_more() -> None:
    book = PromptBook(64)
    book.learn(keys("system"), ["p"])
    book.learn(keys("systems"), ["q"])
    book.lost("q")
    assert book.held(keys("systems")) == {"p": 384}
    book.lost("p")
    assert book.held(keys("systems")) == {}
    # So the first of those that come now is waited for.
    assert book.begin(A, keys("system one"))
    assert not book.begin(B, keys("system two"))


def test_peers_that_come_and_go_are_not_remembered() -> None:
    book = PromptBook(64)
    for number in range(1000):
        book.learn(keys("system"), ["stays", f"peer {number}"])
        book.lost(f"peer {number}")
    assert book.held(keys("system")) == {"stays": 384}
    assert all(len(holders) == 1 for holders in book._holders.values())
