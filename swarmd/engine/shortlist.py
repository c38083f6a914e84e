"""Which tokens can still be drawn, found without sorting the vocabulary.

The same as `swarmd.engine.sampler.restrict`, which is the plain way to say it.
"""

from __future__ import annotations

import math

import torch

from swarmd.core.sampling import SamplingParams

HEAD = 1024
"""So many of the likeliest tokens are looked at first: a nucleus is mostly among them."""

_MARGIN = 1e-4
"""Sums of probabilities in another order differ by less."""


def shortlist(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor | None:
    """Return the tokens that min-p, top-k and top-p leave, ascending, or None for all.

    `logits` are (vocab_size,) float32, divided by the temperature.
    """
    floor = _floor(logits, params)
    if params.top_p >= 1.0:
        return None if floor == -math.inf else _from(logits, floor)
    tokens = _from(logits, floor) if floor > -math.inf else _around(logits, params.top_p)
    kept = logits if tokens is None else logits[tokens]
    norm = torch.logsumexp(kept if floor > -math.inf else logits, -1)
    ordered, places = kept.sort(descending=True, stable=True)
    before = torch.exp(ordered - norm).cumsum(-1).roll(1)
    before[0] = 0.0
    places = places[before < params.top_p].sort().values
    return places if tokens is None else tokens[places]


def _floor(logits: torch.Tensor, params: SamplingParams) -> float:
    """Return the lowest logit that min-p and top-k leave."""
    floor = -math.inf
    if params.min_p > 0:
        floor = float(logits.max()) + math.log(params.min_p)
    if 0 < params.top_k < logits.shape[-1]:
        floor = max(floor, float(logits.topk(params.top_k).values[-1]))
    return floor


def _from(logits: torch.Tensor, floor: float) -> torch.Tensor:
    return torch.nonzero(logits >= floor)[:, 0]


def _around(logits: torch.Tensor, top_p: float) -> torch.Tensor | None:
    """Return tokens among which the nucleus is, or None if they may be any."""
    if logits.shape[-1] <= HEAD:
        return None
    head = logits.topk(HEAD).values
    sums = torch.exp(head - torch.logsumexp(logits, -1)).cumsum(-1)
    reached = int((sums < top_p + _MARGIN).sum())
    return _from(logits, float(head[reached])) if reached < HEAD else None
