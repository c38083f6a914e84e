"""Shares of one call end together: nobody works on what the caller has freed already."""

from __future__ import annotations

import threading

import pytest

from swarmd.engine.workers import spread


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_waits_for_the_other_shares(failing: int) -> None:
    begun, failed, left, ended = (threading.Event() for _ in range(4))
    seen = []

    def work(first: int, last: int) -> None:
        if first == failing:
            begun.wait(20)
            failed.set()
            raise MemoryError("of one share")
        if first == 2:
            begun.set()
            failed.wait(20)
            seen.append(left.wait(0.2))
            ended.set()

    with pytest.raises(MemoryError, match="of one share"):
        spread([(0, 1), (1, 2), (2, 3)], work)
    left.set()
    assert ended.wait(20)
    assert seen == [False], "the error left while a share was running"
