"""A frozen picture of the swarm: what all valid announcements say at one moment.

Where they come from is the directory's business; routes and placement are decided over a view by
`swarm.router` and `swarm.placement`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable
from functools import cached_property
from typing import TypeVar

from swarmd.core.errors import UnknownModel
from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.core.span import Span, missing_blocks, replicas_per_block

T = TypeVar("T")

_STAYING = (NodeState.SERVING, NodeState.LOADING)

DEFAULT_BLOCK_MS = 1.0
"""Taken for a peer that has not measured its steps yet."""
PREFILL_TOKEN = 0.02
"""What a token of a prompt takes of a decode step, as many are computed together, on a peer that
has not measured it yet."""


def block_ms(peer: Announcement, unmeasured: float = DEFAULT_BLOCK_MS) -> float:
    """Return the milliseconds that one block of a decode step takes on that peer.

    `unmeasured` is for one that has not taken any yet.
    """
    return peer.step_ms / len(peer.span) if peer.step_ms > 0 else unmeasured


def prefill_block_ms(peer: Announcement) -> float:
    """Return the milliseconds that one block takes of one token of a prompt on that peer.

    Never more than a step's: together with others no row takes longer than alone.
    """
    step = block_ms(peer)
    if peer.prefill_ms <= 0:
        return PREFILL_TOKEN * step
    return min(step, peer.prefill_ms / len(peer.span))


class View:
    """Immutable. Of several announcements of a peer the latest counts; void ones are left out.

    `now` is wall time in seconds. Peers are in the order of their ids. A model is asked for by its
    served name or its digest. Blocks count as served where a peer is SERVING: one that is LOADING
    counts for placement only, one that is DRAINING for neither.
    """

    def __init__(self, announcements: Iterable[Announcement], now: float) -> None:
        latest: dict[str, Announcement] = {}
        for announcement in announcements:
            held = latest.get(announcement.peer_id)
            if held is None or held.issued_at < announcement.issued_at:
                latest[announcement.peer_id] = announcement
        self.now = now
        self.peers: tuple[Announcement, ...] = tuple(
            latest[peer_id]
            for peer_id in sorted(latest)
            if latest[peer_id].state is not NodeState.GONE and latest[peer_id].expires_at > now
        )
        self._remembered: dict[Hashable, object] = {}

    def peer(self, peer_id: str) -> Announcement | None:
        """Return what that peer announces, None if it is not here."""
        return self._by_id.get(peer_id)

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what `make` made of this view when it was first asked under that key.

        One key always goes with the same function, so that the type is right.
        """
        if key not in self._remembered:
            self._remembered[key] = make()
        return self._remembered[key]  # type: ignore[return-value]

    @cached_property
    def models(self) -> tuple[ModelInfo, ...]:
        """The models that anybody announces, by name; see `find` for two of one name."""
        return tuple(
            sorted((peers[0].model for peers in self._by_digest.values()), key=_name_and_digest)
        )

    def find(self, model: str) -> ModelInfo:
        """Return the model of that name or digest; raises UnknownModel naming those that exist.

        Where other weights go by the same name, the ones count that miss the fewest blocks, then
        those that most peers hold.
        """
        if model in self._by_digest:
            return self._by_digest[model][0].model
        namesakes = [info for info in self.models if info.name == model]
        if not namesakes:
            known = ", ".join(sorted({info.name for info in self.models})) or "none"
            raise UnknownModel(f"nobody in the swarm serves {model!r}; models here: {known}")
        if len(namesakes) == 1:
            return namesakes[0]
        return min(namesakes, key=self._incompleteness)

    def of_model(self, model: str) -> tuple[Announcement, ...]:
        """Return every peer of the model, whatever its state; empty for an unknown model."""
        try:
            return tuple(self._by_digest[self.find(model).digest])
        except UnknownModel:
            return ()

    def serving(self, model: str) -> tuple[Announcement, ...]:
        """Return the peers that take new sessions."""

        def serving() -> tuple[Announcement, ...]:
            return tuple(peer for peer in self.of_model(model) if peer.state is NodeState.SERVING)

        return self.remember(("serving", model), serving)

    def placed(self, model: str) -> tuple[Announcement, ...]:
        """Return the peers that will hold their `destination`: served, loading, or on the move."""
        return tuple(
            peer
            for peer in self.of_model(model)
            if peer.state in _STAYING or (peer.state is NodeState.DRAINING and peer.plan)
        )

    def missing(self, model: str) -> tuple[tuple[int, int], ...]:
        """Return the gaps in what is served, as half-open intervals; raises UnknownModel."""
        spans = (peer.span for peer in self.serving(model))
        return missing_blocks(spans, self.find(model).num_blocks)

    def replicas(self, model: str) -> list[int]:
        """Return for each block how many peers serve it; raises UnknownModel."""
        spans = [peer.span for peer in self.serving(model)]
        return replicas_per_block(spans, self.find(model).num_blocks)

    def thin(self, model: str) -> tuple[tuple[int, int], ...]:
        """Return the runs of blocks that only one peer serves; raises UnknownModel.

        With that peer the model would be gone.
        """
        held = (Span(b, b + 1) for b, n in enumerate(self.replicas(model)) if n != 1)
        return missing_blocks(held, self.find(model).num_blocks)

    def thinnest(self, model: str) -> Span:
        """Return the first longest run of blocks that the fewest peers serve."""
        replicas = self.replicas(model)
        fewest = min(replicas)
        runs = missing_blocks(
            (Span(i, i + 1) for i, count in enumerate(replicas) if count > fewest), len(replicas)
        )
        return max((Span(*run) for run in runs), key=lambda run: (len(run), -run.start))

    @cached_property
    def _by_id(self) -> dict[str, Announcement]:
        return {peer.peer_id: peer for peer in self.peers}

    @cached_property
    def _by_digest(self) -> dict[str, list[Announcement]]:
        """Peers by model; those who contradict most others about its shape are left out."""
        groups: defaultdict[str, list[Announcement]] = defaultdict(list)
        for peer in self.peers:
            groups[peer.model.digest].append(peer)
        agreed = {}
        for digest, peers in groups.items():
            ((shape, _),) = Counter(_shape(peer.model) for peer in peers).most_common(1)
            agreed[digest] = [peer for peer in peers if _shape(peer.model) == shape]
        return agreed

    def _incompleteness(self, info: ModelInfo) -> tuple[int, int, str]:
        lacking = sum(end - start for start, end in self.missing(info.digest))
        return lacking, -len(self._by_digest[info.digest]), info.digest


def _shape(model: ModelInfo) -> tuple[int, int, int]:
    return model.num_blocks, model.hidden_size, model.vocab_size


def _name_and_digest(model: ModelInfo) -> tuple[str, str]:
    return model.name, model.digest
