"""A view holds what is valid now, and says what is served and what is missing."""

from __future__ import annotations

import pytest
from swarm_peers import NOW, model_of, peer, peer_id

from swarmd.core.errors import UnknownModel
from swarmd.core.peers import NodeState
from swarmd.core.span import Span
from swarmd.swarm.view import View


def test_the_latest_announcement_of_a_peer_counts() -> None:
    old, new = peer(1, 0, 4), peer(1, 4, 8, issued_at=NOW + 1)
    assert View([new, old], NOW).peers == (new,)
    assert View([old, new], NOW).peer(peer_id(1)) == new


def test_a_tombstone_removes_a_peer() -> None:
    gone = peer(1, 0, 8, state=NodeState.GONE, issued_at=NOW + 1)
    view = View([peer(1, 0, 8), gone], NOW + 2)
    assert view.peers == ()
    assert view.peer(peer_id(1)) is None
    assert view.models == ()


def test_an_expired_announcement_is_void() -> None:
    assert View([peer(1, 0, 8)], NOW + 29.9).peers
    assert not View([peer(1, 0, 8)], NOW + 30).peers


def test_loading_counts_for_placement_and_draining_for_nothing() -> None:
    serving = peer(1, 0, 4)
    loading = peer(2, 4, 8, state=NodeState.LOADING)
    draining = peer(3, 4, 8, state=NodeState.DRAINING)
    view = View([serving, loading, draining], NOW)
    assert view.serving("demo") == (serving,)
    assert view.placed("demo") == (serving, loading)
    assert view.of_model("demo") == (serving, loading, draining)
    assert view.missing("demo") == ((4, 8),)
    assert view.replicas("demo") == [1, 1, 1, 1, 0, 0, 0, 0]


def test_the_thinnest_run_of_blocks() -> None:
    view = View([peer(1, 0, 8), peer(2, 0, 3), peer(3, 4, 5)], NOW)
    assert view.thinnest("demo") == Span(5, 8)
    assert View([peer(1, 0, 8)], NOW).thinnest("demo") == Span(0, 8)


def test_a_model_is_known_by_name_and_by_digest() -> None:
    view = View([peer(1, 0, 8)], NOW)
    assert view.find("demo") == view.find("ab" * 32) == model_of()
    assert view.missing("ab" * 32) == ()


def test_an_unknown_model_is_told_apart_from_known_ones() -> None:
    view = View([peer(1, 0, 8), peer(2, 0, 8, model=model_of(name="chat", digest="cd" * 32))], NOW)
    with pytest.raises(UnknownModel, match="'dmeo'; models here: chat, demo"):
        view.find("dmeo")
    assert view.of_model("dmeo") == ()
    with pytest.raises(UnknownModel, match="models here: none"):
        View([], NOW).missing("demo")


def test_of_two_models_with_one_name_the_complete_one_counts() -> None:
    other = model_of(digest="01" * 32)
    partial = [peer(n, 0, 4, model=other) for n in (1, 2, 3)]
    assert View([*partial, peer(4, 0, 8)], NOW).find("demo") == model_of()
    complete = [*partial, peer(5, 4, 8, model=other)]
    assert View([*complete, peer(4, 0, 8)], NOW).find("demo") == other


def test_a_peer_that_contradicts_the_others_about_the_model_is_left_out() -> None:
    liar = peer(1, 0, 9, model=model_of(9))
    view = View([liar, peer(2, 0, 8), peer(3, 0, 8)], NOW)
    assert view.find("demo").num_blocks == 8
    assert liar not in view.of_model("demo")


def test_peers_may_differ_in_what_is_their_own_affair() -> None:
    shorter = peer(1, 0, 8, model=model_of(name="alias"))
    view = View([shorter, peer(2, 0, 8)], NOW)
    assert len(view.of_model("ab" * 32)) == 2
