"""What a coordinator knows of kept sessions, and what a request makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swarmd.core.errors import LeaseEnded, RequestError
from swarmd.node.kept import MAX_TOKENS, Kept, KeptBook
from swarmd.node.requests import parse, session_request
from swarmd.toys import toy_model
from swarmd.v1 import inference_pb2 as pb

ID, SECRET = b"s" * 16, b"k" * 16
IDS = tuple(range(10, 20))
KEPT = Kept(ID, SECRET, IDS, prompt_tokens=6, lease_s=30.0)


def book(most: int = 8) -> KeptBook:
    one = KeptBook(most)
    one.add(KEPT, 100.0)
    return one


def asked(**fields: object) -> pb.ContinueFrom:
    return pb.ContinueFrom(**{"session": ID, "secret": SECRET} | fields)


def test_a_kept_session_is_found_until_its_lease_ends() -> None:
    found = book().find(asked(), 129.9, whole=False)
    assert found is not None
    assert (found.ids, found.next_borders) == (IDS, (6, 10))
    with pytest.raises(LeaseEnded, match=r"ended 0\.5 s ago, after 30 s: send the whole prompt"):
        book().find(asked(), 130.5, whole=False)


def test_who_brings_all_that_is_needed_gets_it_computed() -> None:
    found = book().find(asked(past_ids=IDS, tokens=7), 999.0, whole=False)
    assert found is not None
    assert found.ids == IDS[:7]
    assert not found.route
    assert found.past.run > len(found.ids), "nobody here knows in what chunks they were computed"
    assert book().find(asked(), 999.0, whole=True) is None


def test_strangers_learn_nothing() -> None:
    for wrong in (asked(secret=b"x" * 16), asked(session=b"x" * 16)):
        with pytest.raises(LeaseEnded, match="not kept by this node"):
            book().find(wrong, 101.0, whole=False)
    with pytest.raises(RequestError, match="16 bytes each"):
        book().find(asked(secret=b"short"), 101.0, whole=False)
    with pytest.raises(RequestError, match="11 tokens of a kept session that has 10"):
        book().find(asked(tokens=11), 101.0, whole=False)


def test_a_session_that_is_released_is_kept_no_longer() -> None:
    one = book()
    with pytest.raises(LeaseEnded, match="not kept by this node"):
        one.release(ID, b"x" * 16, 101.0)
    assert one.release(ID, SECRET, 101.0) == replace(KEPT, ends_at=130.0)
    assert not len(one)
    for again in (
        lambda: one.release(ID, SECRET, 102.0),
        lambda: book().release(ID, SECRET, 131.0),
    ):
        with pytest.raises(LeaseEnded, match="there is nothing to release"):
            again()
    with pytest.raises(RequestError, match="16 bytes each"):
        one.release(ID, b"short", 101.0)


def test_the_book_is_bounded_and_forgets_what_has_ended() -> None:
    one = book(most=2)
    for number in range(5):
        kept = Kept(bytes([number]) * 16, SECRET, IDS, 6, lease_s=10.0 + number)
        one.add(kept, 100.0)
    assert len(one) == 2
    one.add(KEPT, 1000.0)
    assert len(one) == 1


def test_the_ids_that_are_remembered_are_bounded() -> None:
    one, ids = KeptBook(100), (7,) * (MAX_TOKENS // 3)
    for number in range(5):
        one.add(Kept(bytes([number]) * 16, SECRET, ids, 6, lease_s=10.0 + number), 100.0)
    assert len(one) == 3
    assert one.get(bytes([4]) * 16)


def test_what_the_client_was_not_told_of_is_not_gone_on_from() -> None:
    one = book()
    one.cut(ID, 8)
    found = one.find(asked(), 101.0, whole=False)
    assert found is not None
    assert found.ids == IDS[:8]


def test_ids_follow_the_past_and_a_chat_is_held_against_it() -> None:
    model = toy_model()
    after = parse(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[7])), model, (7,), KEPT)
    assert after.prompt_ids == (*IDS, 7)
    assert after.borders == (6, 10)
    chat = pb.GenerateRequest(chat=pb.Chat())
    other = parse(chat, model, (*IDS[:8], 99, 98), KEPT)
    assert other.prompt_ids == (*IDS[:8], 99, 98)
    assert other.past is not None
    assert other.past.ids == IDS[:8]
    assert other.borders == (6, 8)
    assert parse(chat, model, (1, 2), KEPT).past is None
    empty = parse(pb.GenerateRequest(token_ids=pb.TokenIds()), model, (), KEPT)
    assert empty.prompt_ids == IDS


def test_a_number_of_seconds_is_needed() -> None:
    with pytest.raises(RequestError, match="keep_alive"):
        parse(pb.GenerateRequest(keep_alive_s=-1.0), toy_model(), (1,))


def test_what_hops_hold_by_the_word_of_a_client_is_claimed() -> None:
    model = toy_model()
    request = pb.GenerateRequest(max_tokens=4)

    def claimed(past: Kept | None, request: pb.GenerateRequest = request) -> bool:
        generation = parse(request, model, (1, 2), past)
        return session_request(generation, model, "me", 8, 4).claimed

    told = book().find(asked(past_ids=IDS), 999.0, whole=False)
    assert (claimed(None), claimed(KEPT), claimed(told)) == (False, False, True)
    resume = pb.ResumeFrom(session=ID, secret=SECRET, epoch=1, chunk_size=8, prompt_ids=IDS)
    assert claimed(None, pb.GenerateRequest(max_tokens=4, resume=resume))
