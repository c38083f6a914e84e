"""Announcements as signed bytes, and the directory keys that they are stored under.

Everything here is checked as if a stranger had written it. Who carries the bytes is `swarm.dht`'s
business, what follows from an announcement is `swarm.view`'s.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from google.protobuf.message import DecodeError

from swarmd.core.errors import ConfigError, ProtocolError
from swarmd.core.options import split_address
from swarmd.core.peers import (
    MAX_LEASE_S,
    MAX_PRECISION,
    Announcement,
    ModelInfo,
    NodeState,
)
from swarmd.core.span import Span
from swarmd.swarm.coordinates import is_coordinate
from swarmd.swarm.identity import Identity, peer_id_of, verify
from swarmd.v1 import directory_pb2 as pb

MAX_RECORD_BYTES = 1024
CLOCK_SKEW_S = 10.0
"""How far ahead of ours another node's clock may be."""
MAX_BLOCKS = 4096
MAX_EOS_IDS = 16
SHARDS = 1
"""Keys that the peers of one model are spread over. One holds a few hundred peers."""
MODELS_KEY = b"swarmd.v1.models"
DTYPES = ("float32", "bfloat16", "float16")

_SIGNED = b"swarmd.v1.Announcement\x00"
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]{2,80}\]|[A-Za-z0-9._-]{1,240}):([0-9]{1,5})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_COUNT = 1 << 53


class StaleError(ProtocolError):
    """An announcement whose time is over."""


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the directory: a signed announcement under a key and a subkey."""

    key: bytes
    subkey: bytes
    value: bytes
    expires_at: float


def sign(announcement: Announcement, identity: Identity) -> Announcement:
    """Return the announcement with key and signature; raises ConfigError if it is invalid."""
    if announcement.peer_id != identity.peer_id:
        raise ConfigError(f"{identity!r} cannot sign for peer {announcement.peer_id}")
    if fault := _fault(announcement):
        raise ConfigError(f"cannot announce this node: {fault}")
    signature = identity.sign(_SIGNED + _body(announcement))
    return replace(announcement, public_key=identity.public_key, signature=signature)


def encode(announcement: Announcement) -> bytes:
    """Return a signed announcement as bytes: the same ones for the same value."""
    data = pb.SignedAnnouncement(
        announcement=_body(announcement),
        public_key=announcement.public_key,
        signature=announcement.signature,
    ).SerializeToString(deterministic=True)
    if len(data) > MAX_RECORD_BYTES:
        raise ConfigError(
            f"an announcement of {len(data)} bytes, at most {MAX_RECORD_BYTES} are allowed: "
            "shorten the served model name or the address"
        )
    return data


def decode(data: bytes, now: float) -> Announcement:
    """Return the announcement in `data`, its peer id taken from the key that signed it.

    `now` is wall time in seconds. Raises ProtocolError for anything that is forged, malformed, out
    of range, expired, or made to live longer than `MAX_LEASE_S`.
    """
    announcement = _READ.get(data, now)
    if announcement.issued_at > now + CLOCK_SKEW_S:
        raise ProtocolError(
            f"peer {announcement.peer_id} announces from {announcement.issued_at - now:.0f} s in "
            "the future: its clock or ours is wrong"
        )
    if announcement.expires_at <= now:
        raise StaleError(f"the announcement of peer {announcement.peer_id} has expired")
    return announcement


def model_key(digest: str, shard: int = 0) -> bytes:
    """Return the key under which peers of a model announce themselves."""
    return f"swarmd.v1.model.{digest}.{shard}".encode()


def shard_of(peer_id: str) -> int:
    """Return which of a model's keys a peer announces under."""
    return int.from_bytes(hashlib.sha256(peer_id.encode()).digest()[:4], "big") % SHARDS


def records_of(announcement: Announcement) -> list[Record]:
    """Return what a signed announcement puts into the directory.

    Besides its own entry a peer keeps its model in the list of models, where the subkey is the
    digest and any announcement of a peer that serves it is the value. A tombstone leaves the list
    alone: others may serve the model, and if nobody does the entry lapses.
    """
    value = encode(announcement)
    return [
        Record(key, subkey, value, announcement.expires_at) for key, subkey in _places(announcement)
    ]


def belongs(announcement: Announcement, key_hash: bytes, subkey: bytes) -> bool:
    """Return whether the announcement may stand there; `key_hash` is the SHA-1 of the key."""
    return (key_hash, subkey) in [
        (hashlib.sha1(key).digest(), subkey) for key, subkey in _places(announcement)
    ]


def _places(announcement: Announcement) -> Iterator[tuple[bytes, bytes]]:
    digest = announcement.model.digest
    yield model_key(digest, shard_of(announcement.peer_id)), bytes.fromhex(announcement.peer_id)
    if announcement.state is not NodeState.GONE:
        yield MODELS_KEY, bytes.fromhex(digest)


class ReadRecords:
    """What has been read, until its lease is over: each record comes about once a second.

    Every change of load is a record of its own, so what is over must not stay.
    """

    def __init__(self, most: int = 16384) -> None:
        """Of more than `most` the others are read each time anew."""
        self._kept: dict[bytes, Announcement] = {}
        self._most = most
        self._sweep_from = _SWEEP_FROM
        self._swept_at = 0.0

    def get(self, data: bytes, now: float) -> Announcement:
        """Return an announcement, of which everything but the time is checked."""
        found = self._kept.get(data)
        if found is None:
            found = _read(data)
            if len(self._kept) >= self._sweep_from and abs(now - self._swept_at) >= _SWEEP_EVERY_S:
                self._sweep(now)
            in_time = found.expires_at <= now + MAX_LEASE_S + CLOCK_SKEW_S
            if in_time and len(self._kept) < self._most:
                self._kept[data] = found
        return found

    def _sweep(self, now: float) -> None:
        self._kept = {data: a for data, a in self._kept.items() if a.expires_at > now}
        self._sweep_from = min(self._most, max(_SWEEP_FROM, 2 * len(self._kept)))
        self._swept_at = now

    def __len__(self) -> int:
        return len(self._kept)


_SWEEP_FROM = 64
_SWEEP_EVERY_S = 1.0
_READ = ReadRecords()


def _read(data: bytes) -> Announcement:
    if len(data) > MAX_RECORD_BYTES:
        raise ProtocolError(f"a record of {len(data)} bytes, at most {MAX_RECORD_BYTES} are read")
    try:
        signed = pb.SignedAnnouncement.FromString(data)
        if not verify(signed.public_key, signed.signature, _SIGNED + signed.announcement):
            raise ProtocolError("an announcement whose signature does not fit its key")
        announcement = _value(pb.Announcement.FromString(signed.announcement), signed)
    except (DecodeError, ConfigError, ValueError) as error:
        raise ProtocolError(f"a malformed announcement: {error}") from None
    if fault := _fault(announcement):
        raise ProtocolError(f"peer {announcement.peer_id} announces nonsense: {fault}")
    return announcement


def _body(a: Announcement) -> bytes:
    model = pb.AnnouncedModel(
        name=a.model.name,
        digest=bytes.fromhex(a.model.digest),
        num_blocks=a.model.num_blocks,
        hidden_size=a.model.hidden_size,
        vocab_size=a.model.vocab_size,
        max_model_len=a.model.max_model_len,
        eos_token_ids=a.model.eos_token_ids,
    )
    return pb.Announcement(
        address=a.address,
        model=model,
        start=a.span.start,
        end=a.span.end,
        state=pb.NodeState.Name(int(a.state)),
        issued_at=a.issued_at,
        expires_at=a.expires_at,
        dtype=a.dtype,
        precision=a.precision if a.precision != a.dtype else "",
        device=a.device,
        pid=a.pid,
        version=a.version,
        step_ms=a.step_ms,
        prefill_ms=a.prefill_ms,
        tokens_per_s=a.tokens_per_s,
        sessions=a.sessions,
        queue_depth=a.queue_depth,
        kv_total_bytes=a.kv_total_bytes,
        kv_free_bytes=a.kv_free_bytes,
        kv_bytes_per_token=a.kv_bytes_per_token,
        coordinate=a.coordinate,
        replay_exact=a.replay_exact,
        ragged=a.ragged,
        moves=a.moves,
        plan_start=a.plan.start if a.plan else 0,
        plan_end=a.plan.end if a.plan else 0,
        leaves=a.leaves,
        lag_ms=a.lag_ms,
        starves=a.starves,
    ).SerializeToString(deterministic=True)


def _value(message: pb.Announcement, signed: pb.SignedAnnouncement) -> Announcement:
    """Raises ConfigError or ValueError where the message has no value of ours."""
    model = ModelInfo(
        name=message.model.name,
        digest=message.model.digest.hex(),
        num_blocks=message.model.num_blocks,
        hidden_size=message.model.hidden_size,
        vocab_size=message.model.vocab_size,
        max_model_len=message.model.max_model_len,
        eos_token_ids=tuple(message.model.eos_token_ids),
    )
    return Announcement(
        peer_id=peer_id_of(signed.public_key),
        address=message.address,
        model=model,
        span=Span(message.start, message.end),
        state=NodeState(message.state),
        issued_at=message.issued_at,
        expires_at=message.expires_at,
        dtype=message.dtype,
        precision=message.precision or message.dtype,
        device=message.device,
        pid=message.pid,
        version=message.version,
        step_ms=message.step_ms,
        prefill_ms=message.prefill_ms,
        tokens_per_s=message.tokens_per_s,
        sessions=message.sessions,
        queue_depth=message.queue_depth,
        kv_total_bytes=message.kv_total_bytes,
        kv_free_bytes=message.kv_free_bytes,
        kv_bytes_per_token=message.kv_bytes_per_token,
        coordinate=tuple(message.coordinate),
        replay_exact=message.replay_exact,
        ragged=message.ragged,
        moves=message.moves,
        plan=Span(message.plan_start, message.plan_end) if message.plan_end else None,
        leaves=message.leaves,
        lag_ms=message.lag_ms,
        starves=message.starves,
        public_key=signed.public_key,
        signature=signed.signature,
    )


def _fault(a: Announcement) -> str | None:
    """Return what is wrong with an announcement, whoever made it; None if nothing is."""
    return _model_fault(a.model) or _node_fault(a) or _number_fault(a)


def _model_fault(model: ModelInfo) -> str | None:
    if not _is_text(model.name, 1, 128):
        return "the model's name is empty, longer than 128 characters or not printable"
    if not _DIGEST.fullmatch(model.digest):
        return "the model's digest is not a SHA-256 in lower-case hex"
    if not 1 <= model.num_blocks <= MAX_BLOCKS:
        return f"{model.num_blocks} blocks, 1 to {MAX_BLOCKS} are allowed"
    sizes = (model.hidden_size, model.vocab_size, model.max_model_len, *model.eos_token_ids)
    if min(sizes) < 0 or max(sizes) >= 1 << 31:
        return "a size of the model is out of range"
    if len(model.eos_token_ids) > MAX_EOS_IDS:
        return f"{len(model.eos_token_ids)} end-of-sequence ids, at most {MAX_EOS_IDS} are allowed"
    return None


def _node_fault(a: Announcement) -> str | None:
    if max(a.span.end, a.destination.end) > a.model.num_blocks:
        return f"blocks {a.span} or {a.destination} of a model with {a.model.num_blocks}"
    if not _can_be_dialled(a.address):
        return f"address {a.address[:80]!r} is not HOST:PORT"
    if a.dtype not in DTYPES:
        return f"dtype {a.dtype[:80]!r} is none of {', '.join(DTYPES)}"
    if not _is_text(a.precision, 0, MAX_PRECISION):
        return f"a precision that is not {MAX_PRECISION} printable characters at most"
    if not _is_text(a.device, 1, 64) or not _is_text(a.version, 0, 32):
        return "device or version is too long or not printable"
    return None


def _number_fault(a: Announcement) -> str | None:
    speeds = (a.step_ms, a.prefill_ms, a.tokens_per_s, a.lag_ms)
    numbers = (a.issued_at, a.expires_at, *speeds, *a.coordinate)
    if not all(map(math.isfinite, numbers)):
        return "a number is not finite"
    if not 0 < a.expires_at - a.issued_at <= MAX_LEASE_S:
        return f"a lease of {a.expires_at - a.issued_at:g} s, at most {MAX_LEASE_S:g} are allowed"
    kv = (a.kv_total_bytes, a.kv_free_bytes, a.kv_bytes_per_token)
    counts = (a.pid, a.sessions, a.queue_depth, *speeds, *kv)
    if min(counts) < 0 or max(counts) > _MAX_COUNT:
        return "a count is out of range"
    if a.coordinate and not is_coordinate(a.coordinate):
        return "the network coordinate is not (x, y, height) within 100 s"
    return None


def _can_be_dialled(address: str) -> bool:
    try:
        return bool(_ADDRESS.fullmatch(address)) and split_address(address)[1] > 0
    except ConfigError:
        return False


def _is_text(text: str, shortest: int, longest: int) -> bool:
    return shortest <= len(text) <= longest and text.isprintable()
