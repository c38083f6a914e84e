"""What a stranger may send that knows everything of a session but its secret."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarmd.core.frames import (
    Close,
    DType,
    Failed,
    Gap,
    Keep,
    Open,
    Opened,
    Payload,
    Refusal,
    Resume,
    SessionFrame,
    Step,
    Token,
)
from swarmd.core.route import Hop
from swarmd.sim.client import Client
from swarmd.toys import TOY_HIDDEN

if TYPE_CHECKING:
    from swarmd.sim.node import Process

STRANGER = "mallory"


def forged(draw: random.Random, client: Client, hop: Hop) -> list[SessionFrame]:
    """Return frames of all kinds."""
    session = client.session
    epoch = client.epoch + draw.choice([0, 0, 0, 1, 5])
    number, position = draw.choice([0, 0, 1, 2, 9]), draw.randint(0, 80)
    rows = Payload(DType.FLOAT32, (1, TOY_HIDDEN), bytes(4 * TOY_HIDDEN))
    return [
        Step(session, epoch, number, position, (1,), hidden=rows),
        Step(session, epoch, number, position, (1,), token_ids=(1,)),
        Resume(session, epoch, position),
        Close(session, epoch),
        Keep((session,)),
        Token(session, epoch, number, position, 7),
        Gap(session, epoch, number, position),
        Failed(session, epoch, Refusal.COMPUTE_FAILED),
        Opened(session, epoch, kv_length=position),
        Open(
            session=session,
            secret=bytes(16),
            epoch=epoch,
            fresh=False,
            model_digest=client.world.model.digest,
            blocks=hop.blocks,
            next_peer="" if hop.blocks.end == client.world.num_blocks else STRANGER,
            prev_peer=STRANGER,
            max_positions=len(client.prompt_ids) + client.max_tokens,
            prompt_tokens=len(client.prompt_ids),
            sampling=client.sampling,
            token_ids=client.prompt_ids,
        ),
    ]


def bring(process: Process, frames: Sequence[SessionFrame]) -> None:
    """Let a process take frames of a stranger's, as soon as it is awake.

    An id that a hop does not know may be anybody's, and the session that is opened by it the
    stranger's own: it is opened only where it is known when the open comes. A node that stood still
    frees what has lapsed meanwhile before it takes the first frame.
    """
    process.loop.do(lambda: _take(process, frames))


def _take(process: Process, frames: Sequence[SessionFrame]) -> None:
    orders = [frame for frame in frames if isinstance(frame, Open)]
    others = [frame for frame in frames if not isinstance(frame, Open)]
    process.exchange.on_frames(STRANGER, others)
    for order in orders:
        if process.loaded and order.session in process.table.sessions:
            process.exchange.on_frames(STRANGER, [order])
