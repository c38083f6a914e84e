"""What a simulated client has asked for and come to; `swarmd.simulation` drives it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarmd.core.route import Route
from swarmd.pipeline.driver import Request
from swarmd.pipeline.events import Finished

if TYPE_CHECKING:
    from swarmd.simulation import SimRun


@dataclass(slots=True)
class Client:
    """Who wants the tokens: it survives its coordinators."""

    request: Request
    ids: list[int] = field(default_factory=list)
    epoch: int = 0
    route: Route = ()
    standbys: Route = ()
    run: SimRun | None = None
    """Who works for it; one that it has turned away from may not know that yet."""
    finished: Finished | None = None
    finished_at: float = 0.0
    repairs: int = 0
    resumes: int = 0
    stall: float = 0.0
    """The longest time without a token, after the first one."""
    last_at: float | None = None
