"""Where prompts that begin alike should meet: one peer among replicas, as long as it has room.

What a coordinator has had computed is found by its own sessions only, so requests that begin alike
must come to the same one. Every node, asked alone, names the same peer by rendezvous hashing; which
route the session takes from there is `swarm.router`'s decision.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from math import ceil

from swarmd.core.peers import Announcement
from swarmd.swarm.placements import NOTHING, Load
from swarmd.swarm.view import block_ms

AT_HOME = 32
"""Sessions up to which it is not worth computing a prompt's beginning a second time elsewhere: that
takes as long as thousands of steps of one session, and these hardly slow each other down."""
ALONE_AT_HOME = 2
"""The same where sessions are not batched."""
BOUND = 1.25
"""More than that go to a peer only up to so many times its share, by speed, of all sessions."""
QUICK = 4.0
"""A peer this many times slower than the quickest is nobody's home. Not less: what peers measure of
themselves moves, and homes should not."""
LEAST_FREE = 0.05
"""Of its KV must be free."""


def home_of(
    key: bytes, peers: Sequence[Announcement], unseen: Mapping[str, Load]
) -> Announcement | None:
    """Return where prompts of this beginning meet, among peers that hold the first blocks.

    `unseen` is the load that announcements do not show yet. None: nobody has room for more.
    """
    if not peers:
        return None
    quickest = min((block_ms(peer) for peer in peers if peer.step_ms > 0), default=0.0)
    able = [p for p in peers if p.step_ms <= 0 or block_ms(p) <= QUICK * quickest]
    for peer in sorted(able, key=lambda peer: _rank(key, peer.peer_id), reverse=True):
        if has_room(peer, able, unseen):
            return peer
    return None


def has_room(peer: Announcement, peers: Sequence[Announcement], unseen: Mapping[str, Load]) -> bool:
    """Whether a peer can take one more session for what it has computed; `peers` could instead."""
    load = unseen.get(peer.peer_id, NOTHING)
    free = peer.kv_free_bytes - load.kv_bytes
    if peer.kv_total_bytes > 0 and free < LEAST_FREE * peer.kv_total_bytes:
        return False
    sessions = _sessions(peer, unseen)
    if sessions < (AT_HOME if peer.ragged else ALONE_AT_HOME):
        return True
    speeds = sum(1 / block_ms(other) for other in peers)
    share = (1 / block_ms(peer)) / speeds if speeds else 1.0
    return sessions < ceil(BOUND * share * (1 + sum(_sessions(p, unseen) for p in peers)))


def _sessions(peer: Announcement, unseen: Mapping[str, Load]) -> int:
    return max(0, peer.sessions + unseen.get(peer.peer_id, NOTHING).sessions)


def _rank(key: bytes, peer_id: str) -> bytes:
    return hashlib.blake2b(peer_id.encode(), key=key, digest_size=8).digest()
