"""The tokens that can be drawn are those of the plain restriction, without a sorted vocabulary."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from swarmd.core.sampling import SamplingParams
from swarmd.engine import shortlist
from swarmd.engine.sampler import restrict

VOCAB = 5000

PARAMS = [
    SamplingParams(temperature=1.0, top_k=k, top_p=p, min_p=m)
    for k, p, m in itertools.product(
        (0, 1, 40, VOCAB + 1), (1.0, 0.95, 0.5, 1e-9), (0.0, 0.05, 1.0)
    )
]


def rows() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(VOCAB, generator=generator)
    ruled_out = (wide * 3).index_fill(0, torch.arange(0, VOCAB, 2), -math.inf)
    return {
        "peaked": wide * 4,
        "flat": wide * 0.01,
        "many equal": (wide * 4).bfloat16().float(),
        "all equal": torch.zeros(VOCAB),
        "few": wide[:50] * 2,
        "ruled out": ruled_out,
    }


@pytest.mark.parametrize("name", rows())
@pytest.mark.parametrize("params", PARAMS, ids=lambda p: f"k{p.top_k}-p{p.top_p}-m{p.min_p}")
def test_what_is_left_is_what_the_plain_way_leaves(name: str, params: SamplingParams) -> None:
    logits = rows()[name]
    got = shortlist.shortlist(logits, params)
    wanted = restrict(logits, params).isfinite()
    left = torch.zeros(len(logits), dtype=torch.bool)
    left[slice(None) if got is None else got] = True
    odd = (left & logits.isfinite() != wanted).sum()
    # Where a sum of probabilities ends exactly at top_p, the last bit decides about one token.
    assert odd <= (1 if params.top_p < 1 else 0)
    assert got is None or torch.equal(got, got.sort().values)


def test_a_nucleus_among_the_likeliest_is_found_without_sorting_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    sort = torch.Tensor.sort
    monkeypatch.setattr(
        torch.Tensor,
        "sort",
        lambda self, *a, **k: (sizes.append(len(self)), sort(self, *a, **k))[1],
    )
    shortlist.shortlist(rows()["peaked"], SamplingParams(temperature=1.0, top_p=0.9))
    assert max(sizes) <= shortlist.HEAD
