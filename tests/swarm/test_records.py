"""Announcements come back as they went, and nothing that is forged or absurd comes in."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from swarm_peers import NOW, model_of, peer

from swarmd.core.errors import ConfigError, ProtocolError
from swarmd.core.peers import Announcement, NodeState
from swarmd.core.span import Span
from swarmd.swarm import records
from swarmd.swarm.identity import Identity
from swarmd.v1 import directory_pb2 as pb

ME = Identity(bytes(32))
OTHER = Identity(bytes(31) + b"\x01")
FULL = peer(
    7,
    2,
    6,
    peer_id=ME.peer_id,
    address="[fe80::1]:65535",
    dtype="bfloat16",
    precision="bfloat16/3fa94c01",
    device="cuda:1",
    version="0.1.0",
    step_ms=12.5,
    prefill_ms=0.25,
    tokens_per_s=99.5,
    sessions=3,
    queue_depth=2,
    kv_total_bytes=1 << 40,
    kv_free_bytes=1 << 39,
    kv_bytes_per_token=4096,
    coordinate=(1.5, -2.5, 0.5),
    replay_exact=False,
    ragged=False,
    moves=True,
    plan=Span(1, 5),
    leaves=True,
    lag_ms=120.5,
)


def signed(**changes: Any) -> Announcement:
    return records.sign(replace(FULL, **changes), ME)


def hostile(**changes: Any) -> bytes:
    """Sign something that our own `sign` refuses, as a modified node would."""
    body = records._body(replace(FULL, **changes))
    signature = ME.sign(b"swarmd.v1.Announcement\x00" + body)
    return pb.SignedAnnouncement(
        announcement=body, public_key=ME.public_key, signature=signature
    ).SerializeToString()


def test_an_announcement_comes_back_as_it_went() -> None:
    announcement = signed()
    data = records.encode(announcement)
    assert records.decode(data, NOW) == announcement
    assert records.encode(records.decode(data, NOW)) == data
    assert len(data) < 320


PLACE = st.floats(-1e5, 1e5, width=32)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(NodeState),
    st.tuples(PLACE, PLACE, st.floats(0.0, 1e5, width=32)) | st.just(()),
    st.integers(0, 1 << 53),
    st.text("ab/-.:é漢", min_size=1, max_size=100),
)
def test_any_valid_value_comes_back(
    state: NodeState, coordinate: tuple[float, ...], kv: int, name: str
) -> None:
    model = model_of(name=name)
    announcement = signed(state=state, coordinate=coordinate, kv_free_bytes=kv, model=model)
    assert records.decode(records.encode(announcement), NOW) == announcement


def test_a_peer_speaks_for_itself_only() -> None:
    with pytest.raises(ConfigError, match="cannot sign for peer"):
        records.sign(FULL, OTHER)
    # The peer id is no field of the message: it follows from the key.
    taken_over = replace(signed(), public_key=OTHER.public_key)
    with pytest.raises(ProtocolError, match="does not fit its key"):
        records.decode(records.encode(taken_over), NOW)


def test_every_changed_byte_is_noticed() -> None:
    data = bytearray(records.encode(signed()))
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises(ProtocolError):
            records.decode(bytes(changed), NOW)


def test_an_announcement_has_its_time() -> None:
    data = records.encode(signed())
    assert records.decode(data, NOW - records.CLOCK_SKEW_S)
    with pytest.raises(ProtocolError, match="11 s in the future"):
        records.decode(data, NOW - 11)
    assert records.decode(data, NOW + 29.9)
    with pytest.raises(ProtocolError, match="expired"):
        records.decode(data, NOW + 30)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"expires_at": NOW + 121}, "a lease of 121 s, at most 120"),
        ({"expires_at": NOW}, "a lease of 0 s"),
        ({"expires_at": math.inf}, "not finite"),
        ({"step_ms": math.nan}, "not finite"),
        ({"step_ms": -1.0}, "out of range"),
        ({"prefill_ms": math.inf}, "not finite"),
        ({"prefill_ms": -1.0}, "out of range"),
        ({"prefill_ms": 1e30}, "out of range"),
        ({"kv_free_bytes": 1 << 60}, "out of range"),
        ({"coordinate": (1.0, 2.0)}, "coordinate"),
        ({"coordinate": (1.0, 2.0, 1e6)}, "coordinate"),
        ({"coordinate": (1.0, 2.0, -1.0)}, "coordinate"),
        ({"address": "nowhere"}, "not HOST:PORT"),
        ({"address": "a b:7420"}, "not HOST:PORT"),
        ({"address": "host:0"}, "not HOST:PORT"),
        ({"address": "host:65536"}, "not HOST:PORT"),
        ({"address": "x" * 241 + ":1"}, "not HOST:PORT"),
        ({"dtype": "int4"}, "is none of"),
        ({"precision": "x" * 33}, "32 printable"),
        ({"precision": "bfloat16/\x1b[2J"}, "32 printable"),
        ({"device": "cpu\x1b[2J"}, "not printable"),
        ({"version": "1" * 33}, "too long"),
        ({"span": Span(0, 9)}, "blocks 0:9 or 1:5 of a model with 8"),
        ({"plan": Span(3, 9)}, "blocks 2:6 or 3:9 of a model with 8"),
        ({"model": model_of(name="")}, "name"),
        ({"model": model_of(name="n" * 129)}, "name"),
        ({"model": model_of(name="a\nb")}, "name"),
        ({"model": model_of(digest="ab" * 31)}, "digest"),
        ({"model": model_of(4097)}, "4097 blocks"),
        ({"model": replace(model_of(), eos_token_ids=(1,) * 17)}, "17 end-of-sequence ids"),
        ({"model": replace(model_of(), vocab_size=1 << 31)}, "out of range"),
    ],
)
def test_nonsense_is_refused_both_ways(changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError, match=fault):
        signed(**changes)
    with pytest.raises(ProtocolError, match=fault):
        records.decode(hostile(**changes), NOW)


@pytest.mark.parametrize("state", [0, 5, 99])
def test_an_unknown_state_is_refused(state: int) -> None:
    body = pb.Announcement.FromString(records._body(FULL))
    body.state = state  # type: ignore[assignment]
    data = body.SerializeToString()
    record = pb.SignedAnnouncement(
        announcement=data,
        public_key=ME.public_key,
        signature=ME.sign(b"swarmd.v1.Announcement\x00" + data),
    )
    with pytest.raises(ProtocolError, match="malformed"):
        records.decode(record.SerializeToString(), NOW)


def test_an_empty_span_is_refused() -> None:
    body = pb.Announcement.FromString(records._body(FULL))
    body.end = body.start
    data = body.SerializeToString()
    record = pb.SignedAnnouncement(
        announcement=data,
        public_key=ME.public_key,
        signature=ME.sign(b"swarmd.v1.Announcement\x00" + data),
    )
    with pytest.raises(ProtocolError, match="malformed"):
        records.decode(record.SerializeToString(), NOW)


@given(st.binary(max_size=400))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        records.decode(data, NOW)


def test_a_record_is_bounded() -> None:
    long = model_of(name="漢" * 128)
    assert len(records.encode(signed(model=long, address="h" * 240 + ":7420"))) <= 1024
    with pytest.raises(ProtocolError, match="1025 bytes"):
        records.decode(bytes(1025), NOW)


def test_an_announcement_has_its_place() -> None:
    own, listed = records.records_of(signed())
    assert own.subkey == bytes.fromhex(ME.peer_id)
    assert own.key == records.model_key("ab" * 32)
    assert listed.subkey == bytes.fromhex("ab" * 32)
    assert listed.key == records.MODELS_KEY
    assert own.value == listed.value
    assert own.expires_at == NOW + 30


def test_a_tombstone_does_not_list_its_model() -> None:
    assert [r.key for r in records.records_of(signed(state=NodeState.GONE))] == [
        records.model_key("ab" * 32)
    ]


def test_an_older_node_that_names_no_precision_is_known_by_its_dtype() -> None:
    plain = records.decode(records.encode(signed(precision="")), NOW)
    assert plain.precision == plain.dtype


def test_what_has_been_read_is_kept_for_its_lease() -> None:
    read = records.ReadRecords()

    def one(at: float) -> bytes:
        return records.encode(signed(issued_at=at, expires_at=at + 30.0))

    for second in range(600):
        read.get(one(NOW + second), NOW + second)
        assert read.get(one(NOW + second), NOW) is read.get(one(NOW + second), NOW)
    assert len(read) <= 70


def test_no_more_is_kept_than_there_is_room_for() -> None:
    read = records.ReadRecords(most=5)
    for number in range(9):
        read.get(records.encode(signed(issued_at=NOW + number / 10)), NOW)
    assert len(read) == 5
    of_tomorrow = records.ReadRecords()
    later = records.encode(signed(issued_at=NOW + 3600.0, expires_at=NOW + 3630.0))
    assert of_tomorrow.get(later, NOW).issued_at == NOW + 3600.0
    assert len(of_tomorrow) == 0


@pytest.mark.parametrize("address", ["-a:80", ".x:80", "[::::]:80", "a:0", "a:65536", "unix:/x"])
def test_an_address_that_nobody_can_dial_is_refused(address: str) -> None:
    with pytest.raises(ProtocolError, match="is not HOST:PORT"):
        records.decode(hostile(address=address), NOW)
