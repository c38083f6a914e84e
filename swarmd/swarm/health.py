"""How far each peer is to be trusted with a route: penalties that fade.

Who reports what is the node's business; what a penalty costs on a route is `swarm.router`'s.
"""

from __future__ import annotations

import enum

HALF_LIFE_S = 30.0
MAX_PENALTY = 64.0
DEMOTED_AT = 1.0
"""A peer with so much penalty gets work only where the others have a lot, or do not exist."""
_FORGET_BELOW = 0.01


class Fault(enum.Enum):
    """What a peer did wrong; the value is the penalty that it adds."""

    FAILED = 2.0
    """A link broke, or a step was answered with an error."""
    TIMED_OUT = 3.0
    """No answer before the deadline: costs a stream more time than a link that breaks at once."""
    LAGGED = 2.5
    """It lives, but held a session up for much longer than usual."""
    DISAGREED = 32.0
    """It computed something else than others did: five half-lives until one failure's worth."""


class Health:
    """Penalties by peer id. `now` is seconds of any one clock; it is never read here."""

    def __init__(self) -> None:
        self._penalties: dict[str, tuple[float, float]] = {}

    def report(self, peer_id: str, fault: Fault, now: float) -> None:
        """Add the fault's penalty to what is left of earlier ones."""
        total = min(MAX_PENALTY, self.penalty(peer_id, now) + fault.value)
        self._penalties[peer_id] = (total, now)

    def succeeded(self, peer_id: str, now: float) -> None:
        """Halve what is left: a peer that works again earns its place back sooner."""
        if peer_id in self._penalties:
            self._keep(peer_id, self.penalty(peer_id, now) / 2, now)

    def penalty(self, peer_id: str, now: float) -> float:
        """Return the penalty, 0 for a peer in good standing; it halves every `HALF_LIFE_S`."""
        if peer_id not in self._penalties:
            return 0.0
        total, since = self._penalties[peer_id]
        return float(total * 0.5 ** (max(0.0, now - since) / HALF_LIFE_S))

    def distrusted(self, now: float) -> frozenset[str]:
        """Return the peers that have at least `DEMOTED_AT` of penalty left."""
        return frozenset(p for p in self._penalties if self.penalty(p, now) >= DEMOTED_AT)

    def forget(self, now: float) -> None:
        """Drop what has faded, so that the table stays as small as the trouble."""
        for peer_id in list(self._penalties):
            self._keep(peer_id, self.penalty(peer_id, now), now)

    def _keep(self, peer_id: str, penalty: float, now: float) -> None:
        if penalty < _FORGET_BELOW:
            del self._penalties[peer_id]
        else:
            self._penalties[peer_id] = (penalty, now)

    def __len__(self) -> int:
        return len(self._penalties)
