"""What a node that loads its model says to clients: who serves them now, or when to come back.

The door itself is `swarmd.node.inference`'s, loading is `swarmd.node.loading`'s.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from swarmd.core.clock import Clock
from swarmd.core.errors import NodeLoading, UnknownModel
from swarmd.core.peers import Announcement, ModelInfo
from swarmd.core.span import missing_blocks
from swarmd.node import served_names
from swarmd.node.presence import Presence

LEAST_WAIT_S = 0.5
MOST_WAIT_S = 5.0
PART = 0.1
"""A client asks again after this part of the time that loading has taken so far: so it waits hardly
a tenth longer than it must, and a model that loads for minutes is not asked for twice a second."""


class Warming:
    """One start of one node, up to the moment at which it serves. Lives on the event loop."""

    def __init__(
        self,
        presence: Presence,
        clock: Clock,
        stop: Callable[[], None],
        progress: Callable[[], str],
    ) -> None:
        """`stop` ends the start; `progress` says for people how far loading is, or nothing."""
        self.stop = stop
        self._presence = presence
        self._clock = clock
        self._since = clock.monotonic()
        self._progress = progress

    def refusal(self) -> NodeLoading:
        """Return the error for a client who must wait for this node."""
        taken = self._clock.monotonic() - self._since
        wait = min(max(PART * taken, LEAST_WAIT_S), MOST_WAIT_S)
        so_far = f" ({progress})" if (progress := self._progress()) else ""
        return NodeLoading(
            f"this node is still loading its model{so_far}: ask another one, or this one again in "
            f"{wait:.1f} s",
            wait,
        )

    def elsewhere(self, asked: str) -> tuple[Announcement, ModelInfo] | None:
        """Return a peer that serves the first blocks of the model; any of several, to spread load.

        None: the others do not hold all of the model, or which one is meant is not known before
        this node has opened its own.
        """
        model = self._meant(asked)
        if model is None:
            return None
        serving = self._presence.view.serving(model.digest)
        # What it announced before it was started again may still be there.
        others = [peer for peer in serving if peer.peer_id != self._presence.own_id]
        if missing_blocks((peer.span for peer in others), model.num_blocks):
            return None
        first = [peer for peer in others if peer.span.start == 0]
        return random.choice([peer for peer in first if not peer.starves] or first), model

    def _meant(self, asked: str) -> ModelInfo | None:
        own = self._presence.own
        if own is not None and served_names.means(asked, own.model):
            return own.model
        try:
            return served_names.find(self._presence.view, asked) if asked else None
        except UnknownModel:
            return None  # it may be known as soon as more of the swarm is seen
