"""When and where a client goes on after its coordinator is lost: the policy, as values.

Carrying it out, with calls and waits, is `swarmd.client.generation`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from swarmd.core.errors import (
    CapacityError,
    ConfigError,
    NodeLoading,
    PeerUnreachable,
    SwarmdError,
)
from swarmd.core.options import join_address, split_address

LOADING_WAIT_S = (0.05, 10.0)
"""Shortest and longest time after which a node that loads is asked again, whatever it says."""


@dataclass(frozen=True, slots=True)
class ResumePolicy:
    """How stubbornly a generation is resumed. A count begins anew when a token has come through.

    Every candidate is asked once without waiting; between such passes the wait doubles.
    """

    attempts: int = 100
    """Calls at most, for one break; 0 turns resuming off."""
    budget_s: float = 30.0
    """Seconds from the break after which no new attempt begins."""
    first_delay_s: float = 0.1
    max_delay_s: float = 2.0
    connect_timeout_s: float = 2.0
    """Longest wait for one candidate to answer the dial."""

    def __post_init__(self) -> None:
        if self.attempts < 0 or self.budget_s < 0 or self.connect_timeout_s <= 0:
            raise ConfigError(f"a resume policy needs attempts and times of 0 or more: {self}")
        if not 0 < self.first_delay_s <= self.max_delay_s:
            raise ConfigError(f"a resume policy needs 0 < first_delay_s <= max_delay_s: {self}")

    def allows(self, attempts: int, elapsed_s: float) -> bool:
        """Whether another attempt may begin after so many of them, and so long after the break."""
        return attempts < self.attempts and (attempts == 0 or elapsed_s < self.budget_s)

    def delay(self, passes: int, draw: float) -> float:
        """Return the wait after that many passes (from 1) over all candidates, in seconds.

        `draw` is uniform in [0, 1): half of the wait is jitter, so that the clients of a dead node
        do not come back in step.
        """
        full = min(self.first_delay_s * 2.0 ** min(passes - 1, 32), self.max_delay_s)
        return full * (0.5 + 0.5 * draw)


def another_node_may_do(error: SwarmdError) -> bool:
    """Whether a request that has not begun should be tried at another node."""
    return isinstance(error, PeerUnreachable)


def loading_wait(refusals: Sequence[SwarmdError], draw: float) -> float | None:
    """Return how long to wait before asking all over again; None: none of them will serve soon.

    A node that says that it is loading will serve, whatever becomes of the others. `draw` in [0, 1)
    adds up to a fifth, so that the clients of a swarm that starts do not come back in step.
    """
    hints = [error.retry_after_s for error in refusals if isinstance(error, NodeLoading)]
    if not hints:
        return None
    least, most = LOADING_WAIT_S
    return min(max(min(hints), least), most) * (1 + 0.2 * draw)


def resumable(error: SwarmdError) -> bool:
    """Whether a generation that has begun may go on elsewhere.

    A node that answers with a reason is believed, unless the reason is that there is no room now.
    """
    return isinstance(error, PeerUnreachable | CapacityError)


def candidates(
    given: Iterable[str], route: Iterable[str], known: Iterable[str], lost: str
) -> tuple[str, ...]:
    """Return the addresses to resume at, best first.

    The nodes that the caller gave come first, since the client can surely reach that network; then
    the hops of the last route, then what else is known; the lost coordinator last: it may be back.
    Addresses that are none are left out.
    """
    ordered = (address for group in (given, route, known) for address in group if dialable(address))
    others = (address for address in dict.fromkeys(ordered) if address != lost)
    return (*others, lost)


def dialable(address: str) -> bool:
    """Whether text from the network is a `HOST:PORT` and nothing else that gRPC would resolve."""
    try:
        host, port = split_address(address)
    except ConfigError:
        return False
    return port > 0 and join_address(host, port) == address
