"""One generation as its coordinator is given it: all the state that it has.

What becomes of it is `driver.Driver`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from swarmd.core.errors import PromptTooLong, RequestError
from swarmd.core.frames import Open, Past
from swarmd.core.peers import ModelInfo
from swarmd.core.prefix import PREFIX_UNIT, prefix_keys
from swarmd.core.route import Hop, Route
from swarmd.core.sampling import SamplingParams
from swarmd.pipeline.steps import ChunkPlan


@dataclass(frozen=True, slots=True)
class Request:
    """Prompt, parameters and, where another coordinator began it, how far it is."""

    session: bytes
    secret: bytes
    model: ModelInfo
    me: str
    """Peer id of the coordinator: the first hop's steps come from it."""
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int
    chunk_size: int
    """Positions per prompt chunk; a resumed session must keep that of its beginning."""
    stop_ids: frozenset[int] = frozenset()
    """Ids that end the output, beside the model's own unless `ignore_eos`."""
    ignore_eos: bool = False
    known_ids: tuple[int, ...] = ()
    """Output so far."""
    epoch: int = 0
    """The last epoch that is known of; 0 for a new session."""
    route: Route = ()
    """The route of that epoch, as far as it is known."""
    standbys: Route = ()
    """Peers that held copies of that route's KV, as far as they are known."""
    standby: int = 0
    """How many copies of each hop's KV are wanted: 0 or 1."""
    prefix: tuple[bytes, ...] = ()
    """Keys of the prompt's units, for hops to share; see `core.prefix`."""
    prefix_unit: int = PREFIX_UNIT
    cache_salt: bytes = b""
    """What the keys were made with."""
    past: Past | None = None
    """The kept session with which the prompt begins."""
    claimed: bool = False
    """Whether only the client says that hops hold KV of these ids: of a resumed session, or of a
    past that its coordinator has not driven itself. Others must not come to use it."""
    borders: tuple[int, ...] = ()
    """Where in the prompt former outputs begin and end; see `steps.ChunkPlan`."""
    keep_s: float = 0.0
    """For how long what is computed is kept after the end."""
    tenant: bytes = b""

    @property
    def resumed(self) -> bool:
        """Whether hops may hold this session already."""
        return self.epoch > 0

    @property
    def max_positions(self) -> int:
        """What hops reserve KV for."""
        return len(self.prompt_ids) + self.max_tokens

    @property
    def computed(self) -> int:
        """Positions that other coordinators have had computed: all that came before an output."""
        if not (self.resumed and self.known_ids):
            return 0
        return len(self.prompt_ids) + len(self.known_ids) - 1

    def located_past(self) -> Past | None:
        """The past, with the places in it at which a hop may begin."""
        if self.past is None or self.past.run:
            return self.past  # it says itself that nothing is known of its chunks
        tokens, borders = self.past.tokens, self.borders
        plan = ChunkPlan(len(self.prompt_ids), self.chunk_size, borders)
        floor = plan.floor(min(tokens, len(self.prompt_ids) - 1))
        run = borders[-2] if borders and borders[-1] == tokens else tokens + 1
        return replace(self.past, floor=floor, run=run)

    def keys(self, ids: Sequence[int]) -> tuple[bytes, ...]:
        """Keys of the units of prompt and output, if the prompt's are shared."""
        if not self.prefix:
            return ()
        digest, salt = self.model.digest, self.cache_salt
        return prefix_keys(ids, digest, self.chunk_size, salt, self.prefix_unit)

    def ends_with(self, ids: list[int]) -> str:
        """Why prompt and output so far are complete: `stop`, `length`, or nothing if not."""
        count = len(ids) - len(self.prompt_ids)
        if count:
            last, ends = ids[-1], () if self.ignore_eos else self.model.eos_token_ids
            if last in self.stop_ids or last in ends:
                return "stop"
        return "length" if count >= self.max_tokens else ""

    def check(self) -> None:
        """Raise RequestError when the request cannot succeed anywhere."""
        if not self.prompt_ids or self.max_tokens < 1 or self.chunk_size < 1:
            raise RequestError(
                f"a prompt of {len(self.prompt_ids)} tokens, max_tokens {self.max_tokens} and "
                f"chunks of {self.chunk_size}: each must be at least 1"
            )
        vocabulary = self.model.vocab_size
        for token in (*self.prompt_ids, *self.known_ids):
            if not 0 <= token < vocabulary:
                raise RequestError(f"token id {token}: the model's are 0 to {vocabulary - 1}")
        if self.max_positions > self.model.max_model_len:
            raise PromptTooLong(
                f"{len(self.prompt_ids)} prompt tokens + max_tokens {self.max_tokens} exceed the "
                f"model's length of {self.model.max_model_len}: shorten one of them"
            )


def open_frames(
    request: Request,
    route: Route,
    epoch: int,
    fresh: bool,
    ids: tuple[int, ...],
    computed: int = 0,
) -> Iterator[tuple[Hop, Open]]:
    """What each hop of a route is told at the beginning of an epoch.

    `ids` are all known so far, `computed` positions have been computed before.
    """
    past = request.located_past()
    peers = [request.me, *(hop.peer_id for hop in route), ""]
    for index, hop in enumerate(route, start=1):
        last = index == len(route)
        yield (
            hop,
            Open(
                session=request.session,
                secret=request.secret,
                epoch=epoch,
                fresh=fresh,
                model_digest=request.model.digest,
                blocks=hop.blocks,
                next_peer=peers[index + 1],
                prev_peer=peers[index - 1],
                max_positions=request.max_positions,
                prompt_tokens=len(request.prompt_ids),
                sampling=request.sampling if last else None,
                token_ids=ids if last else (),
                prefix=request.prefix,
                prefix_unit=request.prefix_unit if request.prefix else 0,
                prefix_grain=request.chunk_size if request.prefix else 0,
                past=past,
                keeps=request.keep_s > 0,
                claimed=request.claimed,
                tenant=request.tenant,
                computed=computed,
            ),
        )
