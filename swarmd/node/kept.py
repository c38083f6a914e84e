"""The kept sessions that this node has coordinated: their ids, and how long their leases run.

The KV lies with the hops, which may have lost it: then it is computed again from the ids. What a
hop keeps, and for whom, is `swarmd.pipeline.leases`'s business.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, replace

from swarmd.core.errors import LeaseEnded, RequestError
from swarmd.core.frames import SECRET_BYTES, SESSION_ID_BYTES, Past
from swarmd.core.route import Route
from swarmd.pipeline.steps import borders_of
from swarmd.v1 import inference_pb2 as pb

MAX_TOKENS = 1 << 22
"""Ids of all kept sessions together: forks share KV, but each has its ids."""
AGAIN = "send the whole prompt again"


@dataclass(frozen=True, slots=True)
class Kept:
    """A session that is kept: everything that a next turn begins with."""

    session: bytes
    secret: bytes
    ids: tuple[int, ...]
    """Prompt and output."""
    prompt_tokens: int
    borders: tuple[int, ...] = ()
    route: Route = ()
    lease_s: float = 0.0
    ends_at: float = 0.0
    chunk_size: int = 0
    """Of its prompt; 0 where that is not known. Who goes on from it must cut its own as long."""
    told: bool = False
    """Whether this node has its client's word for the ids alone, and does not know in what chunks
    they were computed: only hops to which chunks do not matter may begin with it."""

    @property
    def past(self) -> Past:
        """What hops are told of it."""
        tokens = len(self.ids)
        return Past(self.session, self.secret, tokens, run=tokens + 1 if self.told else 0)

    @property
    def next_borders(self) -> tuple[int, ...]:
        """The borders of a prompt that begins with it; see `swarmd.pipeline.steps.ChunkPlan`."""
        return borders_of(self.borders, self.prompt_tokens, len(self.ids))

    def first(self, tokens: int) -> Kept:
        """Return its beginning."""
        return replace(self, ids=self.ids[:tokens])


class KeptBook:
    """Kept sessions by id; `now` is in seconds of a monotonic clock."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[bytes, Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, kept: Kept, now: float) -> None:
        """Note a session that the hops keep from now on."""
        for session in [key for key, old in self._kept.items() if old.ends_at <= now]:
            del self._kept[session]
        self._kept[kept.session] = replace(kept, ends_at=now + kept.lease_s)
        tokens = sum(len(old.ids) for old in self._kept.values())
        while len(self._kept) > self._most or (tokens > MAX_TOKENS and len(self._kept) > 1):
            soonest = min(self._kept, key=lambda key: self._kept[key].ends_at)
            tokens -= len(self._kept.pop(soonest).ids)

    def cut(self, session: bytes, tokens: int) -> None:
        """Forget what was computed beyond that: nobody has been told of it."""
        kept = self._kept.get(session)
        if kept is not None:
            self._kept[session] = kept.first(tokens)

    def get(self, session: bytes) -> Kept | None:
        """Return a session that is kept."""
        return self._kept.get(session)

    def find(self, asked: pb.ContinueFrom, now: float, *, whole: bool) -> Kept | None:
        """Return what a request goes on from, or what is left of it where all can be computed.

        That is when the request brings the ids, or its prompt is `whole` in itself: None then, if
        it brings none. Raises LeaseEnded, or RequestError for what was never kept.
        """
        kept = self._named(asked.session, asked.secret)
        if kept is not None and kept.ends_at > now:
            if asked.tokens > len(kept.ids):
                raise RequestError(
                    f"{asked.tokens} tokens of a kept session that has {len(kept.ids)}"
                )
            return kept.first(asked.tokens or len(kept.ids))
        if asked.past_ids:
            ids = tuple(asked.past_ids)[: asked.tokens or None]
            # The hops may have kept it though its coordinator has gone.
            return Kept(asked.session, asked.secret, ids, len(ids), told=True)
        if whole:
            return None
        advice = f"{AGAIN}, or keep it for longer" if kept else AGAIN
        raise LeaseEnded(f"{_why(asked.session, kept, now)}: {advice}")

    def release(self, session: bytes, secret: bytes, now: float) -> Kept:
        """Forget a session before its lease ends; return it, since hops keep it yet.

        Raises LeaseEnded if it is not kept here, RequestError for what names no session.
        """
        kept = self._named(session, secret)
        if kept is None or kept.ends_at <= now:
            raise LeaseEnded(f"{_why(session, kept, now)}: there is nothing to release")
        return self._kept.pop(session)

    def _named(self, session: bytes, secret: bytes) -> Kept | None:
        """Return a session that was kept here, to those who know its secret."""
        if len(session) != SESSION_ID_BYTES or len(secret) != SECRET_BYTES:
            raise RequestError("a kept session is named by its id and secret, 16 bytes each")
        kept = self._kept.get(session)
        return kept if kept and hmac.compare_digest(kept.secret, secret) else None


def _why(session: bytes, kept: Kept | None, now: float) -> str:
    name = session.hex()[:8]
    if kept is None:
        return f"session {name} is not kept by this node, or its lease has ended"
    ago = now - kept.ends_at
    return f"the lease of session {name} ended {ago:.1f} s ago, after {kept.lease_s:g} s"
