"""Sampling is a function of logits, parameters, ids, seed and position, and means what it says."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swarmd.core.errors import RequestError, SessionError
from swarmd.core.sampling import SamplingParams
from swarmd.engine.sampler import Draw, Sampler, penalise, restrict, sample_rows, uniform

VOCAB = 50


def logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def draws(params: SamplingParams, count: int, row: torch.Tensor | None = None) -> list[int]:
    sampler = Sampler(params, VOCAB)
    row = logits() if row is None else row
    return [sampler.sample(row, [], 0, position).id for position in range(count)]


def test_greedy_takes_the_likeliest_token_and_reports_its_logprob() -> None:
    sampled = Sampler(SamplingParams(), VOCAB).sample(logits(), [1, 2], 2, 2)
    assert sampled.id == int(logits().argmax())
    assert sampled.logprob == pytest.approx(float(logits().log_softmax(-1)[sampled.id]), abs=1e-5)
    assert sampled.top == ()


def test_top_logprobs_are_the_models_own_likeliest_first() -> None:
    params = SamplingParams(temperature=2.0, top_logprobs=5, logit_bias=((3, 50.0),))
    sampled = Sampler(params, VOCAB).sample(logits(), [], 0, 7)
    values, tokens = logits().log_softmax(-1).topk(5)
    assert [token for token, _ in sampled.top] == tokens.tolist()
    assert [value for _, value in sampled.top] == pytest.approx(values.tolist(), abs=1e-5)
    assert sampled.id == 3


def test_a_draw_is_fixed_by_seed_and_position() -> None:
    params = SamplingParams(temperature=1.5, seed=7)
    assert draws(params, 50) == draws(params, 50)
    assert draws(params, 50) != draws(SamplingParams(temperature=1.5, seed=8), 50)
    assert len(set(draws(params, 50))) > 5


def test_a_draw_does_not_depend_on_what_was_drawn_before_or_beside_it() -> None:
    params = SamplingParams(temperature=1.5, seed=7)
    alone = Sampler(params, VOCAB).sample(logits(3), [], 0, 20).id
    sampler = Sampler(params, VOCAB)
    for position in range(20):
        sampler.sample(logits(position), [], 0, position)
    rows = torch.stack([logits(1), logits(3), logits(2)])
    beside = [Draw(Sampler(SamplingParams(), VOCAB), [], 0, 0)] * 3
    beside[1] = Draw(sampler, [], 0, 20)
    assert sample_rows(rows, beside)[1].id == alone


def test_many_rows_at_once_give_what_each_gives_alone() -> None:
    rows = torch.stack([logits(seed) for seed in range(6)])
    kinds = [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=1, top_logprobs=3),
        SamplingParams(repetition_penalty=1.3),
    ] * 2
    wanted = [Draw(Sampler(kind, VOCAB), [1, 2, 3, 2], 2, 4) for kind in kinds]
    together = sample_rows(rows, wanted)
    for row, kind, sampled in zip(rows, kinds, together, strict=True):
        alone = Sampler(kind, VOCAB).sample(row, [1, 2, 3, 2], 2, 4)
        assert alone.id == sampled.id
        assert alone.logprob == pytest.approx(sampled.logprob, abs=1e-5)


def test_uniform_is_uniform_over_positions_and_seeds() -> None:
    by_position = torch.tensor([uniform(3, position) for position in range(4000)])
    by_seed = torch.tensor([uniform(seed, 9) for seed in range(4000)])
    for values in (by_position, by_seed):
        assert 0 <= values.min() < 0.01
        assert 0.99 < values.max() < 1
        assert values.mean().item() == pytest.approx(0.5, abs=0.02)
        assert values.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.02)


def test_the_largest_seed_works() -> None:
    assert 0 <= uniform((1 << 64) - 1, 1 << 40) < 1


def test_draws_follow_the_distribution() -> None:
    row = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1] + [1e-9] * (VOCAB - 4)))
    counts = Counter(draws(SamplingParams(temperature=1.0, seed=5), 4000, row))
    for token, share in enumerate([0.5, 0.25, 0.15, 0.1]):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("params", "warpers"),
    [
        (SamplingParams(temperature=0.7), [TemperatureLogitsWarper(0.7)]),
        (SamplingParams(temperature=1.0, top_k=7), [TopKLogitsWarper(7)]),
        (SamplingParams(temperature=1.0, top_p=0.8), [TopPLogitsWarper(0.8)]),
        (SamplingParams(temperature=1.0, min_p=0.1), [MinPLogitsWarper(0.1)]),
        (
            SamplingParams(temperature=1.3, top_k=9, top_p=0.9),
            [TemperatureLogitsWarper(1.3), TopKLogitsWarper(9), TopPLogitsWarper(0.9)],
        ),
    ],
    ids=["temperature", "top_k", "top_p", "min_p", "all"],
)
@pytest.mark.parametrize("seed", range(5))
def test_restriction_is_that_of_transformers(
    params: SamplingParams, warpers: list[object], seed: int
) -> None:
    wanted = logits(seed)[None]
    for warper in warpers:
        wanted = warper(torch.zeros(1, 1, dtype=torch.long), wanted)  # type: ignore[operator]
    got = restrict(logits(seed) / params.temperature, params)
    assert torch.equal(got.isinf(), wanted[0].isinf())
    torch.testing.assert_close(got.softmax(-1), wanted[0].softmax(-1))


def test_only_tokens_that_are_left_are_drawn() -> None:
    allowed = set(logits().topk(3).indices.tolist())
    assert set(draws(SamplingParams(temperature=5.0, top_k=3, seed=1), 300)) == allowed


def test_top_p_keeps_at_least_the_likeliest() -> None:
    row = torch.zeros(VOCAB)
    row[4] = 30.0
    assert set(draws(SamplingParams(temperature=1.0, top_p=1e-9, seed=1), 50, row)) == {4}


def test_repetition_penalty_is_that_of_transformers() -> None:
    ids = [3, 5, 5, 9]
    wanted = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([ids]), logits()[None].clone())[0]
    seen = torch.bincount(torch.tensor(ids), minlength=VOCAB).float()
    got = penalise(logits(), seen, seen, SamplingParams(repetition_penalty=1.7))
    torch.testing.assert_close(got, wanted)


def test_presence_and_frequency_penalties_count_the_output_only() -> None:
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    sampler = Sampler(params, VOCAB)
    row = torch.zeros(VOCAB)
    row[1], row[2], row[3] = 1.0, 0.95, 0.4
    # 1 is in the prompt only; then once in the output (-0.75), then 2 as well, twice (-1.0).
    assert sampler.sample(row, [1, 1, 1], 3, 3).id == 1
    assert sampler.sample(row, [1, 1, 1, 1], 3, 4).id == 2
    assert sampler.sample(row, [1, 1, 1, 1, 2, 2], 3, 6).id == 3


def test_counts_survive_a_rewind_because_they_follow_the_ids() -> None:
    params = SamplingParams(repetition_penalty=3.0, frequency_penalty=1.0, presence_penalty=1.0)
    sampler = Sampler(params, VOCAB)
    path = [[4, 8], [4, 8, 15], [4, 8, 15, 16], [4, 8, 23], [4, 8, 23, 42], [4], [7, 7, 7]]
    for ids in path:
        row = logits(len(ids))
        fresh = Sampler(params, VOCAB).sample(row, ids, 1, len(ids))
        assert sampler.sample(row, ids, 1, len(ids)) == fresh


def test_a_changed_prompt_length_recounts() -> None:
    params = SamplingParams(frequency_penalty=10.0)
    sampler = Sampler(params, VOCAB)
    row = torch.zeros(VOCAB)
    row[6] = 1.0
    assert sampler.sample(row, [6, 6], 2, 2).id == 6
    assert sampler.sample(row, [6, 6], 1, 2).id != 6


def test_logit_bias_adds_up_and_leaves_the_logits_alone() -> None:
    row = logits()
    before = row.clone()
    biased = SamplingParams(logit_bias=((2, 500.0), (2, 500.0), (7, 999.0)))
    assert Sampler(biased, VOCAB).sample(row, [], 0, 0).id == 2
    assert torch.equal(row, before)


def test_a_bias_beyond_the_vocabulary_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match=r"token id 50.*50 tokens"):
        Sampler(SamplingParams(logit_bias=((VOCAB, 1.0),)), VOCAB)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_fail_the_session(bad: float, temperature: float) -> None:
    row = logits()
    row[3] = bad
    with pytest.raises(SessionError, match="position 11"):
        Sampler(SamplingParams(temperature=temperature), VOCAB).sample(row, [], 0, 11)


def test_tokens_that_the_model_itself_rules_out_are_never_drawn() -> None:
    row = torch.full((VOCAB,), -math.inf)
    row[10], row[11] = 0.0, 0.0
    assert set(draws(SamplingParams(temperature=1.0, seed=2), 200, row)) == {10, 11}
