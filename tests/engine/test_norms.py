"""Norms of logits, against what torch gives in double precision."""

from __future__ import annotations

import math

import pytest
import torch

from swarmd.engine import norms
from swarmd.engine.norms import TOLERANCE

SIZES = (1, 63, 64, 65, 1000, 32_000, 151_937)


@pytest.fixture(params=["kernel", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In machine code, and as it is done where there is none."""
    if request.param == "plain":
        monkeypatch.setattr(norms, "kernel", None)
    else:
        assert norms.kernel is not None


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", SIZES)
def test_rows_of_any_size_and_scale(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    for scale in (0.1, 4.0, 300.0):
        rows = scale * torch.randn(3, size, generator=generator)
        for row, (norm, token, logit) in zip(rows, norms.norms(rows), strict=True):
            exact = float(row.double().logsumexp(-1))
            assert norm == pytest.approx(exact, rel=1e-7, abs=TOLERANCE)
            assert (token, logit) == (int(row.argmax()), float(row.max()))


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("first", [0, 66, 199])
def test_of_equals_the_first_is_the_likeliest(first: int) -> None:
    row = torch.zeros(200)
    row[first:] = 2.0
    assert norms.norms(row[None])[0][1] == first


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("at", [0, 70, 128, 129])
def test_what_is_not_finite_shows_but_for_minus_infinity(at: int) -> None:
    for bad in (math.nan, math.inf):
        row = torch.linspace(-3, 3, 130)
        row[at] = bad
        assert not math.isfinite(norms.norms(row[None])[0][0])
    row = torch.full((130,), -math.inf)
    assert not math.isfinite(norms.norms(row[None])[0][0])
    row[at] = 3.0
    assert norms.norms(row[None])[0] == pytest.approx((3.0, at, 3.0), abs=TOLERANCE)


@pytest.mark.usefixtures("way")
def test_rows_that_do_not_lie_end_to_end() -> None:
    rows = torch.randn(100, 3, generator=torch.Generator().manual_seed(1)).T
    exact = rows.double().logsumexp(-1).tolist()
    assert [norm for norm, _, _ in norms.norms(rows)] == pytest.approx(exact, abs=TOLERANCE)


def test_a_kernel_that_is_right_is_used_and_one_that_is_wrong_is_given_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert norms.kernel is not None
    monkeypatch.setattr(norms, "kernel", norms.kernel)
    norms.check_kernel()
    assert norms.kernel is not None
    sum_up = norms.kernel.sum_up
    monkeypatch.setattr(norms.kernel, "sum_up", lambda *row: (*sum_up(*row)[:3], 2.0))
    norms.check_kernel()
    assert norms.kernel is None
    assert "not used on this machine" in caplog.text
