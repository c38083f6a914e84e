"""What a client gets: tokens as they come, a whole completion, and the swarm as one node sees it.

How they travel is protobuf's; `swarmd.client` makes them from what a node says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from swarmd.core.errors import RequestError
from swarmd.core.span import Span


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One of the likeliest tokens at a position."""

    id: int
    logprob: float
    text: str


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """One generated token, seen exactly once by the caller whatever happens to the swarm."""

    text: str
    """Text that became certain with this token: may be empty, or span several tokens."""
    id: int
    """-1: not a token, only text that the coordinator held back until the end."""
    logprob: float
    index: int
    """0 for the first generated token."""
    top: tuple[TopLogprob, ...] = ()
    """Likeliest first; as many as `top_logprobs` asked for."""


@dataclass(frozen=True, slots=True)
class RouteHop:
    """A peer that computes for a session, and which blocks."""

    peer: str
    address: str
    blocks: Span
    pid: int

    def as_dict(self) -> dict[str, Any]:
        """Return `{peer, address, blocks, pid}`, blocks as `"0:4"`."""
        return {
            "peer": self.peer,
            "address": self.address,
            "blocks": str(self.blocks),
            "pid": self.pid,
        }


@dataclass(frozen=True, slots=True)
class Coordinator:
    """The node that drives a session."""

    peer: str
    address: str
    pid: int


@dataclass(frozen=True, slots=True)
class KeptSession:
    """A session that the swarm keeps until its lease ends, for generations that go on from it.

    It never changes: any number may, one after the other or all at once.
    """

    address: str
    """The node that knows it."""
    session: str
    secret: str
    tokens: int
    """How many of its tokens a generation begins with: prompt and output."""
    lease_s: float = 0.0
    token_ids: tuple[int, ...] = ()
    """All of them, where they are known here: what is lost can be computed again from them."""

    def first(self, tokens: int) -> KeptSession:
        """Return the same session up to a token, to go another way from there."""
        if not 1 <= tokens <= self.tokens:
            raise RequestError(f"the first {tokens} tokens of a session that has {self.tokens}")
        return replace(self, tokens=tokens, token_ids=self.token_ids[:tokens])

    def __str__(self) -> str:
        return f"{self.address}/{self.session}{self.secret}/{self.tokens}"

    @classmethod
    def parse(cls, text: str) -> KeptSession:
        """Return what `str` gave, without the ids. Raises RequestError."""
        address, _, rest = text.strip().rpartition("/")[0].partition("/")
        tokens = text.strip().rpartition("/")[2]
        if not re.fullmatch("[0-9a-f]{64}", rest) or not re.fullmatch("[1-9][0-9]{0,9}", tokens):
            raise RequestError(f"{text[:80]!r} does not name a kept session: HOST:PORT/KEY/TOKENS")
        return cls(address, rest[:32], rest[32:], int(tokens))


@dataclass(frozen=True, slots=True)
class Completion:
    """A generation that has ended well."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    """`"stop"`: a stop string, a stop id or the end of sequence; `"length"`: max_tokens."""
    num_prompt_tokens: int
    ttft_s: float
    """Seconds from the call to the first token."""
    tokens_per_s: float
    """Rate of the tokens after the first; 0 if there was only one."""
    repairs: int
    """How often a hop was replaced, over all coordinators."""
    resumes: int
    """How often this client went on at another coordinator."""
    max_stall_s: float
    """Longest wait for a token after the first one, in seconds."""
    route: tuple[RouteHop, ...]
    """The last one, if there were several."""
    session: str
    """Session id in hex."""
    coordinator: Coordinator
    seed: int
    """The seed in use: the same request with it gives the same tokens."""
    model: str = ""
    stop: str = ""
    """The stop string that matched, if one did."""
    recomputed_tokens: int = 0
    """Positions that any hop computed again for repairs and resumptions, over all coordinators:
    each once a repair, however many hops compute it. What a coordinator that is lost has not said
    is not in it."""
    cached_tokens: int = 0
    """Prompt tokens that needed no prefill."""
    precision_changes: int = 0
    """How often a repair found no peer of the same precision for some blocks, and took one of
    another: from then on the ids may differ from those of an undisturbed run."""
    kept: KeptSession | None = None
    """Set with `keep_alive`: what a next turn, or several, can `continue_from`."""

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `swarmd generate --json` prints."""
        return asdict(self) | {
            "token_ids": list(self.token_ids),
            "route": [hop.as_dict() for hop in self.route],
            "kept": str(self.kept) if self.kept else None,
        }


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One peer as the asked node sees it; fields as in `swarmd.v1.PeerStatus`."""

    peer: str
    address: str
    blocks: Span | None
    """None while it serves none, as when loading."""
    state: str
    device: str
    dtype: str
    sessions: int
    kv_total_bytes: int
    kv_free_bytes: int
    tokens_per_s: float
    pid: int
    version: str
    model: str
    model_digest: str
    ragged: bool
    replay_exact: bool
    queue_depth: int
    step_ms: float
    plan: Span | None = None
    """Blocks to which it is about to move, or is moving."""
    precision: str = ""
    """The dtype, with a name of what else its last bits depend on, where they tell."""
    starves: bool = False
    """Whether its machine gives it too little time, so that others go before it."""

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON object, blocks and plan as `"0:4"` or null."""
        return asdict(self) | {
            "blocks": str(self.blocks) if self.blocks else None,
            "plan": str(self.plan) if self.plan else None,
        }


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How much of a model the swarm can compute."""

    name: str
    digest: str
    num_blocks: int
    covered_blocks: int
    replicas: int
    """Fewest live holders of any block."""
    missing: tuple[tuple[int, int], ...]
    max_model_len: int
    thin: tuple[tuple[int, int], ...] = ()
    """Blocks that only one peer serves: with it the model would be gone."""

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON object, missing and thin blocks as `["0:4", ...]`."""
        return asdict(self) | {
            "missing": [f"{start}:{end}" for start, end in self.missing],
            "thin": [f"{start}:{end}" for start, end in self.thin],
        }


@dataclass(frozen=True, slots=True)
class Microbatch:
    """One microbatch of a node: when it was computed, by that node's wall clock, and what of."""

    began: float
    ended: float
    steps: int
    """Sessions in it."""
    decodes: int
    """Those of them that decoded."""
    positions: int


@dataclass(frozen=True, slots=True)
class SwarmStatus:
    """The swarm as one node sees it."""

    peer: str
    """The node that answered."""
    peers: tuple[PeerStatus, ...]
    models: tuple[ModelStatus, ...]
    counters: Mapping[str, float]
    """Of the node that answered, by name."""
    microbatches: tuple[Microbatch, ...] = ()
    """The latest ones of the node that answered, oldest first, if asked for."""

    def as_dict(self) -> dict[str, Any]:
        """Return the object that `swarmd status --json` prints."""
        return {
            "peer": self.peer,
            "peers": [peer.as_dict() for peer in self.peers],
            "models": [model.as_dict() for model in self.models],
            "counters": dict(self.counters),
        }
