"""Tokens for many rows at once are those that each row draws by itself."""

from __future__ import annotations

import random

import pytest
import torch

from swarmd.core.sampling import SamplingParams
from swarmd.engine import many_draws
from swarmd.engine.sampler import Draw, Sampler, uniform

WAYS = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 1.0, "top_k": 7, "top_p": 0.7},
    {"temperature": 0.9, "min_p": 0.02},
    {"temperature": 2.0, "min_p": 0.02, "top_k": 30, "top_p": 0.95},
    {"temperature": 1.0, "top_p": 0.01},
    {"temperature": 1.0, "top_k": 1},
]


@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("vocab", [300, 5000])
def test_a_row_draws_what_it_draws_alone(vocab: int, mixed: bool) -> None:
    rng = random.Random(vocab)
    generator = torch.Generator().manual_seed(vocab)
    for way in WAYS:
        logits = 3 * torch.randn(40, vocab, generator=generator)
        logits[:, 7] = logits[:, 9] = logits[:, 11]
        logits[3, 20:] = -torch.inf
        params = [
            SamplingParams(seed=n, **(rng.choice(WAYS) if mixed else way))  # type: ignore[arg-type]
            for n in range(40)
        ]
        got = many_draws.draw(logits, params, [uniform(n, 12) for n in range(40)]).tolist()
        wanted = [
            Sampler(p, vocab).choose(row, Draw(Sampler(p, vocab), (), 0, 12))
            for p, row in zip(params, logits, strict=True)
        ]
        assert got == wanted


def test_the_last_token_that_can_be_drawn_is_drawn_at_the_very_end() -> None:
    logits = torch.full((2, 50), -torch.inf)
    logits[:, 5] = logits[0, 30] = 0.0
    params = [SamplingParams(temperature=1.0, seed=1)] * 2
    assert many_draws.draw(logits, params, [1.0, 1.0]).tolist() == [30, 5]
    assert many_draws.draw(logits, params, [0.0, 0.0]).tolist() == [5, 5]
