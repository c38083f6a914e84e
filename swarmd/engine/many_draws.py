"""Draws tokens for many rows of logits at once, where starting an operation costs more than it.

What a draw is `swarmd.engine.sampler` says, row by row; the same tokens come out here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from swarmd.core.sampling import SamplingParams


def draw(
    logits: torch.Tensor, params: Sequence[SamplingParams], uniforms: Sequence[float]
) -> torch.Tensor:
    """Return a token id for each row of logits (n, vocab_size) float32, all on their device.

    Bias and penalties have been applied; `uniforms` decide, where the temperature is not 0.
    """
    likeliest = logits.argmax(-1)
    warm = [p.temperature > 0 for p in params]
    if not any(warm):
        return likeliest
    column = _Columns(logits.device)
    logits = logits / column([p.temperature or 1.0 for p in params])
    kept = _kept(logits, params, column)
    if kept is not None:
        logits = logits.masked_fill(~kept, -torch.inf)
    cumulative = torch.softmax(logits.double(), dim=-1).cumsum(-1)
    target = column(list(uniforms), torch.float64) * cumulative[:, -1:]
    places = torch.searchsorted(cumulative, target, right=True)
    # Rounding may leave the target at the very end, past the last token that can be drawn.
    numbers = torch.arange(logits.shape[-1], device=logits.device)
    last = numbers.where(logits > -torch.inf, 0).amax(-1, keepdim=True)
    drawn = torch.minimum(places, last)[:, 0]
    return drawn.where(column(warm, torch.bool)[:, 0], likeliest)


class _Columns:
    """Makes (n, 1) tensors of one number per row."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(
        self, numbers: Sequence[float], dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        return torch.tensor(numbers, dtype=dtype)[:, None].to(self._device, non_blocking=True)


def _kept(
    logits: torch.Tensor, params: Sequence[SamplingParams], column: _Columns
) -> torch.Tensor | None:
    """Return what min-p, top-k and top-p leave of (n, vocab_size), or None for all."""
    vocab = logits.shape[-1]
    ks = [p.top_k if 0 < p.top_k < vocab else vocab for p in params]
    floors = None
    if any(p.min_p > 0 for p in params):
        shares = column([math.log(p.min_p) if p.min_p > 0 else -math.inf for p in params])
        floors = logits.amax(-1, keepdim=True) + shares
    if min(ks) < vocab:
        most = max(k for k in ks if k < vocab)
        ordered = logits.topk(most).values
        places = torch.tensor([[k - 1 if k < vocab else 0] for k in ks]).to(logits.device)
        least = ordered.gather(-1, places)
        least = least.where(column([k < vocab for k in ks], torch.bool), -torch.inf)
        floors = least if floors is None else torch.maximum(floors, least)
    kept = None if floors is None else logits >= floors
    if all(p.top_p >= 1.0 for p in params):
        return kept
    if kept is not None:
        logits = logits.masked_fill(~kept, -torch.inf)
    norm = torch.logsumexp(logits, -1, keepdim=True)
    ordered, tokens = logits.sort(descending=True, stable=True)
    before = torch.exp(ordered - norm).cumsum(-1).roll(1, -1)
    before[:, 0] = 0.0
    limits = column([p.top_p if p.top_p < 1.0 else math.inf for p in params])
    nucleus = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, tokens, before < limits)
    return nucleus if kept is None else nucleus & kept
