"""What a hop table is given, and what it counts.

The rules that these are for are `hop.HopTable`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from swarmd.core.peers import ModelInfo
from swarmd.core.prefix import PREFIX_UNIT
from swarmd.core.span import Span


class KVAccount(Protocol):
    """The stage's KV budget: counts of bytes, no memory. Shared units are reserved by name, too."""

    def reserve(self, session: bytes, blocks: Span, positions: int) -> bool:
        """Make the session's reservation so large; False, and no change, when it does not fit."""
        ...

    def release(self, session: bytes) -> None:
        """Give the session's reservation back."""
        ...

    def lacking(self, session: bytes, blocks: Span, positions: int) -> int:
        """Bytes that are missing for such a reservation; 0 or less when it would fit."""
        ...

    def size(self, blocks: Span, positions: int) -> int:
        """Bytes of KV that so many positions take over these blocks."""
        ...

    def capacity(self, blocks: Span) -> int:
        """Positions over `blocks` that an empty budget holds."""
        ...

    def free_bytes(self) -> int:
        """Bytes that are not reserved."""
        ...


@dataclass(frozen=True, slots=True)
class HopPolicy:
    """The limits of a hop table."""

    orphan_grace: float = 10.0
    """Seconds that a session is kept after the last sign of its coordinator."""
    reservation: float = 5.0
    """Seconds that an opened session is kept unused."""
    max_sessions: int = 256
    exhausted_for: float = 5.0
    """Seconds in which no new session is taken after the machine had no memory for a step."""
    max_queued_steps: int = 1024
    """Steps of one session that may wait for the executor."""
    replay_log_bytes: int = 192 << 20
    """What all replay logs may hold together, without what they share with others."""
    replay_step: int = 256
    """Positions in one step out of a replay log."""
    backlog_bytes: int = 128 << 20
    """What may wait for one peer's link when more is sent out of replay logs; the rest follows as
    that leaves. Half of what a link is given up for: new outputs need room, too."""
    copy_frame_bytes: int = 2 << 20
    """KV in one frame of a copy."""
    copy_window_bytes: int = 16 << 20
    """KV of one copy that may be under way at once."""
    copy_peer_bytes: int = 64 << 20
    """KV of all copies to one peer that may be under way at once; and each copy may have a small
    part of that in any case, which comes to no more than as much again."""
    copy_rate: float = float(256 << 20)
    """Bytes of KV a second that all copies of this node may send."""
    prefix_unit: int = PREFIX_UNIT
    """Positions of prompts that sessions share together; 0 shares nothing. The outputs that are
    kept with them take as much memory as all replay logs may."""
    keep_bytes: int = 0
    """KV of sessions that are kept after their end, or are to be; 0 keeps none."""
    keep_limit: float = 600.0
    """Seconds that a session is kept at most."""


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What the table must know of the stage that it stands before."""

    model: ModelInfo
    span: Span
    pid: int = 0
    chunk_exact: bool = False
    """Whether it computes the same bits in whatever chunks."""
    rewinds: bool = True
    """Whether KV can be cut to any length; otherwise (recurrent state) only to 0, and sessions
    cannot share prefixes, nor have copies."""


@dataclass(slots=True)
class HopCounters:
    """What has happened, for status and metrics."""

    opened: int = 0
    adopted: int = 0
    """Sessions that were opened anew with what they held."""
    refused: int = 0
    freed: int = 0
    lapsed: int = 0
    orphaned: int = 0
    duplicates: int = 0
    gaps: int = 0
    stale_epochs: int = 0
    stale_rounds: int = 0
    wrong_sender: int = 0
    unknown_session: int = 0
    bad_steps: int = 0
    compute_failed: int = 0
    """Sessions that were given up, as a step could not be computed or came back wrong."""
    memory_exhausted: int = 0
    """Of those, the ones for whose step the machine had no memory left."""
    replayed_positions: int = 0
    """Sent on out of the replay log."""
    recomputed_positions: int = 0
    """Given up in rewinds, so computed again, or computed in the place of another hop that had."""
    evicted_positions: int = 0
    """Dropped from the replay logs for want of room."""
    prefix_hit_positions: int = 0
    """Positions with which sessions began, since others had computed them."""
    continued: int = 0
    """Sessions that went on from a kept one."""
    leases_ended: int = 0
    """Kept sessions whose time was over."""
    prefix_evicted_positions: int = 0
    """Shared positions dropped for want of room."""
    copied_positions: int = 0
    """Sent to peers that hold copies."""
    copied_bytes: int = 0
    copy_gaps: int = 0
    """KV that came for a copy and did not follow what it held: what came before was lost."""
    converted_positions: int = 0
    """Of copies whose KV came in another dtype than that of this stage."""
    taken_over: int = 0
    """Sessions that went on here with KV that another hop had sent."""


MAX_STEP_BYTES = 60 << 20
"""Hidden states of one step in float32: links carry no frame of more than 64 MiB."""


def longest_step(model: ModelInfo) -> int:
    """Return how many positions a step may have whose hidden states go on to another hop."""
    return max(1, MAX_STEP_BYTES // (4 * max(1, model.hidden_size)))
