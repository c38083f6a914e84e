"""Who waits for whom on the way to one peer, and that it all comes together on the other side."""

from __future__ import annotations

from collections.abc import Iterable

import frame_values as values
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.core.errors import ProtocolError, QueueFull
from swarmd.core.frames import Keep, Open, SessionFrame, Token
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.pipeline.hop_values import MAX_STEP_BYTES
from swarmd.v1 import peer_pb2 as pb
from swarmd.wire import frames, limits
from swarmd.wire.assembler import Assembler
from swarmd.wire.outbound import Outbound

MIB = 1 << 20


def fill(outbound: Outbound, items: Iterable[SessionFrame]) -> Outbound:
    for frame in items:
        outbound.put(frame)
    return outbound


def filled(items: Iterable[SessionFrame]) -> Outbound:
    return fill(Outbound(), items)


def messages(outbound: Outbound) -> list[pb.Frame]:
    """Everything that waits, as messages; each is held against the limit."""
    taken = []
    while (message := outbound.next_message()) is not None:
        assert message.ByteSize() <= limits.MAX_MESSAGE_BYTES
        taken.append(message)
    assert not outbound
    assert outbound.pending_bytes == 0
    return taken


def received(sent: Iterable[pb.Frame]) -> list[SessionFrame]:
    assembler = Assembler()
    arrived: list[SessionFrame] = []
    for message in sent:
        parsed = pb.Frame.FromString(message.SerializeToString())
        if parsed.WhichOneof("body") == "fragment":
            whole = assembler.add(parsed.fragment)
            arrived += frames.decode(whole) if whole is not None else ()
        else:
            arrived += frames.decode(parsed)
    assert assembler.held_bytes == 0
    return arrived


def kinds(sent: Iterable[pb.Frame]) -> list[str | None]:
    return [message.WhichOneof("body") for message in sent]


def token(n: int, position: int, likely: int = 0) -> Token:
    return Token(values.session(n), 1, 0, position, 9, top=((1 << 20, -1.5),) * likely)


def test_nothing_waits_at_first() -> None:
    assert not Outbound()
    assert Outbound().next_message() is None


def test_steps_of_many_sessions_travel_in_one_message() -> None:
    sent = messages(filled(values.decode_step(n) for n in range(8)))
    assert kinds(sent) == ["steps"]
    assert received(sent) == [values.decode_step(n) for n in range(8)]


def test_tokens_travel_together_but_not_with_steps() -> None:
    outbound = filled([token(1, 1), values.decode_step(2), token(3, 1), values.decode_step(4)])
    assert kinds(messages(outbound)) == ["tokens", "steps"]


def test_a_session_is_served_in_order_whatever_its_frames_are() -> None:
    step, large = values.decode_step(1), values.hidden_step(1, MIB)
    ours: list[SessionFrame] = [values.close(1), step, large, values.close(1, 2)]
    theirs = [values.decode_step(2, position) for position in range(6)]
    arrived = received(messages(filled([*ours, *theirs])))
    assert values.of(1, arrived) == ours
    assert values.of(2, arrived) == theirs


def test_a_decode_step_waits_for_one_fragment_of_a_prefill() -> None:
    outbound = filled([values.hidden_step(1, 5 * MIB)])
    assert kinds([outbound.next_message() or pb.Frame()]) == ["fragment"]
    outbound.put(values.decode_step(2))
    outbound.put(token(3, 4))
    assert kinds(messages(outbound))[:4] == ["steps", "fragment", "tokens", "fragment"]


def test_a_prefill_is_not_starved_by_decode_steps() -> None:
    outbound = filled([values.hidden_step(1, MIB)])
    sent = []
    for position in range(12):
        outbound.put(values.decode_step(2, position))
        sent.append(outbound.next_message() or pb.Frame())
    assert kinds(sent).count("fragment") == 5
    assert values.hidden_step(1, MIB) in received([*sent, *messages(outbound)])


def test_one_frame_at_a_time_is_cut_up() -> None:
    """Many sessions that prefill at once must not meet the receiver's bound on unfinished ones."""
    steps = [values.hidden_step(n, 4 * MIB) for n in range(20)]
    sent = messages(filled(steps))
    assert received(sent) == steps
    numbers = [message.fragment.frame for message in sent]
    assert numbers == sorted(numbers)


def test_the_largest_step_that_is_taken_arrives() -> None:
    assert MAX_STEP_BYTES < limits.MAX_FRAME_BYTES - (1 << 20)  # what hops compute fits as well
    step = values.hidden_step(1, limits.MAX_FRAME_BYTES - 1024)
    assert received(messages(filled([step]))) == [step]


def test_a_frame_that_no_peer_would_take_is_refused_at_once() -> None:
    outbound = Outbound()
    with pytest.raises(ProtocolError, match=r"shorter chunks"):
        outbound.put(values.hidden_step(1, limits.MAX_FRAME_BYTES))
    assert not outbound


def test_a_frame_that_no_peer_would_take_keeps_no_other_one() -> None:
    outbound = Outbound()
    one, other = values.hidden_step(1, 100), values.hidden_step(2, 100)
    with pytest.raises(ProtocolError, match=r"shorter chunks"):
        outbound.put_all([one, values.hidden_step(3, limits.MAX_FRAME_BYTES), other])
    assert received(messages(outbound)) == [one, other]


def test_what_waits_is_bounded() -> None:
    outbound = Outbound(max_bytes=MIB)
    with pytest.raises(QueueFull, match="bytes wait for this peer"):
        fill(outbound, (values.hidden_step(n, 1000) for n in range(10_000)))
    assert MIB // 2 < outbound.pending_bytes <= MIB
    assert outbound.next_message() is not None
    outbound.put(values.hidden_step(1, 1000))


def test_small_frames_are_counted_too() -> None:
    with pytest.raises(QueueFull):
        fill(Outbound(max_bytes=MIB), (values.close(n) for n in range(10_000)))


def test_a_frame_that_is_being_cut_still_counts() -> None:
    outbound = filled([values.hidden_step(1, MIB)])
    outbound.next_message()
    assert outbound.pending_bytes > MIB


def test_clear_forgets_everything() -> None:
    outbound = filled([values.hidden_step(1, MIB), values.decode_step(2)])
    outbound.next_message()
    outbound.clear()
    assert messages(outbound) == []


def test_a_message_holds_no_more_entries_than_the_other_side_takes() -> None:
    tokens = [token(n, 1, likely=20) for n in range(6000)]
    assert received(messages(filled(tokens))) == tokens
    steps = [values.decode_step(n) for n in range(6000)]
    assert received(messages(filled(steps))) == steps


def test_sessions_to_keep_are_told_in_parts_if_they_are_many() -> None:
    keep = Keep(tuple(values.session(n) for n in range(10_000)))
    arrived = received(messages(filled([keep, Keep(())])))
    assert len(arrived) == 3
    parts = [part.sessions for part in arrived if isinstance(part, Keep)]
    assert sum(parts, ()) == keep.sessions


def test_an_open_with_a_long_prompt_goes_in_fragments() -> None:
    frame = Open(
        session=values.session(1),
        secret=bytes(16),
        epoch=1,
        fresh=True,
        model_digest=values.DIGEST,
        blocks=Span(0, 4),
        next_peer="",
        prev_peer="0" * 40,
        max_positions=1 << 20,
        prompt_tokens=1 << 19,
        sampling=SamplingParams(logit_bias=tuple((n, 0.5) for n in range(1024))),
        token_ids=tuple(range(1 << 19)),
    )
    sent = messages(filled([frame]))
    assert set(kinds(sent)) == {"fragment"}
    assert received(sent) == [frame]


zeros = bytes(600 << 10)


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.builds(token, st.integers(0, 3), st.integers(0, 9)),
            st.builds(values.close, st.integers(0, 3), st.integers(1, 9)),
            st.builds(
                lambda n, size: values.hidden_step(n, size * 2, zeros[: size * 2]),
                st.integers(0, 3),
                st.sampled_from([1, 1000, 60 << 10, 130 << 10, 300 << 10]),
            ),
            st.just(None),
        ),
        max_size=40,
    )
)
def test_any_mixture_arrives_whole_and_in_order_per_session(
    events: list[SessionFrame | None],
) -> None:
    """None stands for a message that leaves in between."""
    outbound, sent = Outbound(), []
    for event in events:
        if event is not None:
            outbound.put(event)
        elif (message := outbound.next_message()) is not None:
            sent.append(message)
    arrived = received([*sent, *messages(outbound)])
    for n in range(4):
        assert values.of(n, arrived) == values.of(n, events)


def test_only_one_small_step_or_token_passes_and_only_where_nothing_waits() -> None:
    outbound = Outbound()
    assert outbound.lets_pass([token(1, 1)])
    assert outbound.lets_pass([values.decode_step(2)])
    assert not outbound.lets_pass([token(1, 1), token(2, 1)])
    assert not outbound.lets_pass([values.hidden_step(1, 5 * MIB)])
    assert not outbound.lets_pass([])
    outbound.put(values.hidden_step(1, 5 * MIB))
    while outbound:
        assert not outbound.lets_pass([values.decode_step(2)]), "it would overtake"
        outbound.next_message()
    assert outbound.lets_pass([values.decode_step(2)])
