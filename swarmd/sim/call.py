"""One call of `Generate`, from a simulated client to a process.

What the client makes of what it hears, and of silence, is `client.Client`'s business.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from swarmd.core.errors import PeerUnreachable, SwarmdError
from swarmd.node.run import Output, Run
from swarmd.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from swarmd.sim.client import Client

SILENCE = (2.0, 4.0)
"""After so long a client takes a node that says nothing for lost."""


class Call:
    """Its events come in order, or not at all."""

    def __init__(
        self,
        client: Client,
        peer_id: str,
        may_be_redirected: bool,
        continues: pb.ContinueFrom | None = None,
    ) -> None:
        self.client, self.peer_id = client, peer_id
        self.may_be_redirected = may_be_redirected
        self.continues = continues
        """The kept session that the request goes on from."""
        self.over = False
        """Whether the client has turned away."""
        self.accepted = False
        self.run: Run | None = None
        self.hang_up: Callable[[], None] = lambda: None
        """Let the process know, if it has taken the call."""
        self._world = client.world
        self._last = 0.0
        self._lost_after = float("inf")

    # What the process says.

    def tell(self, output: Output) -> None:
        self._later(functools.partial(self.client.take, self, output))

    def fail(self, error: SwarmdError) -> None:
        self._later(functools.partial(self.client.lost, self, error))

    def redirect(self, peer_id: str) -> None:
        self._later(functools.partial(self.client.redirected, self, peer_id))

    def _later(self, act: Callable[[], None]) -> None:
        timeline = self._world.timeline
        delay = self._world.draw(self._world.climate.delay)
        at = self._last = max(timeline.now + delay, self._last + 1e-6)

        def arrive() -> None:
            if not self.over and timeline.now <= self._lost_after:
                act()

        timeline.at(at, arrive)

    # What becomes of it.

    def process_died(self, *, silently: bool) -> None:
        """Its last words may be lost; the client notices."""
        world = self._world
        notice = world.draw(SILENCE if silently else world.climate.notice)
        self._lost_after = world.timeline.now + notice * world.random.random()
        self.break_after(notice)

    def break_after(self, seconds: float, still: Callable[[], bool] = lambda: True) -> None:
        """The client takes the node for lost, if a condition holds then."""
        error = PeerUnreachable("the call broke")
        lost = functools.partial(self.client.lost, self, error, silent=True)
        self._world.timeline.after(seconds, lambda: lost() if still() and not self.over else None)

    def leave(self, notice: tuple[float, float]) -> None:
        """The client turns away; the process notices in its time."""
        self.over = True
        hear = functools.partial(self._hear)
        self._world.timeline.after(self._world.draw(notice), hear)

    def _hear(self) -> None:
        self.hang_up()
