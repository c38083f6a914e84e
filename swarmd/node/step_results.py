"""What the executor makes of what was computed and drawn for a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from swarmd.engine.sampler import Draw, Sampled
from swarmd.pipeline import events as ev
from swarmd.pipeline.steps import stack


def joined(parts: Sequence[ev.Computed]) -> ev.Computed:
    """Make one result of those of a step that was computed in parts."""
    payloads = [part.payload for part in parts if part.payload is not None]
    tokens = tuple(token for part in parts for token in part.tokens)
    return replace(parts[-1], payload=stack(payloads) if payloads else None, tokens=tokens)


def as_drawn(draws: Sequence[Draw], sampled: Sequence[Sampled]) -> tuple[ev.Drawn, ...]:
    """Return drawn tokens as hops take them."""
    tokens = []
    for draw, token in zip(draws, sampled, strict=True):
        tokens.append(ev.Drawn(draw.position, token.id, token.logprob, token.top))
    return tuple(tokens)
