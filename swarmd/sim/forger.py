"""What a stranger may send that knows everything of a session but its secret."""

from __future__ import annotations

import random

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

STRANGER = "mallory"


def forged(draw: random.Random, client: Client, hop: Hop, known: bool) -> list[SessionFrame]:
    """Return frames of all kinds. An id that a hop does not know yet may be anybody's, so that it
    is opened only where it is `known`."""
    session = client.session
    epoch = client.epoch + draw.choice([0, 0, 0, 1, 5])
    number, position = draw.choice([0, 0, 1, 2, 9]), draw.randint(0, 80)
    rows = Payload(DType.FLOAT32, (1, TOY_HIDDEN), bytes(4 * TOY_HIDDEN))
    frames: list[SessionFrame] = [
        Step(session, epoch, number, position, (1,), hidden=rows),
        Step(session, epoch, number, position, (1,), token_ids=(1,)),
        Resume(session, epoch, position),
        Close(session, epoch),
        Keep((session,)),
        Token(session, epoch, number, position, 7),
        Gap(session, epoch, number, position),
        Failed(session, epoch, Refusal.COMPUTE_FAILED),
        Opened(session, epoch, kv_length=position),
    ]
    if known:
        frames.append(
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
            )
        )
    return frames
