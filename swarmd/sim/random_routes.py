"""Routes at random among what the view shows: they explore more than the cheapest ones do.

The production way is `swarmd.node.routes.Routes`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from swarmd.core.errors import CoverageError
from swarmd.core.peers import Announcement
from swarmd.core.route import Hop, Route
from swarmd.core.span import Span
from swarmd.node.routes import Asked, Routes


class RandomRoutes(Routes):
    """Covers whatever is asked for by peers that are drawn."""

    random: random.Random

    def _find(
        self, spans: Sequence[Span], exclude: frozenset[str], keep: Route, asked: Asked
    ) -> Route:
        view = self._view()
        able = [p for p in view.serving(self._model.digest) if p.peer_id not in exclude]
        return tuple(hop for span in spans for hop in self._drawn(span, able))

    def _drawn(self, span: Span, able: Sequence[Announcement]) -> list[Hop]:
        hops: list[Hop] = []
        block = span.start
        while block < span.end:
            holders = [peer for peer in able if block in peer.span]
            if not holders:
                missing = ((block, block + 1),)
                raise CoverageError(f"no live peer holds block {block}", missing)
            peer = self.random.choice(holders)
            end = min(span.end, peer.span.end)
            hops.append(Hop(peer.peer_id, Span(block, end), peer.address, peer.pid, peer.precision))
            block = end
        return hops
