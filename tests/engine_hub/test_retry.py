"""How long to wait is a value: what the server asks, what we add, and when to give up."""

from __future__ import annotations

import pytest

from swarmd.engine.retry import RetryPolicy, retry_after

POLICY = RetryPolicy(attempts=5, first_s=1.0, cap_s=4.0, longest_s=100.0)
NOON = 1_445_412_480.0  # Wed, 21 Oct 2015 07:28:00 GMT


def test_waits_double_up_to_a_cap_and_end() -> None:
    assert [POLICY.delay(n, None, jitter=1.0) for n in range(1, 6)] == [1, 2, 4, 4, None]
    assert [POLICY.delay(n, None, jitter=0.0) for n in range(1, 6)] == [0.5, 1, 2, 2, None]


def test_what_the_server_asks_is_waited_in_full() -> None:
    assert POLICY.delay(1, 30.0, jitter=0.0) == 30.5
    assert POLICY.delay(1, 101.0, jitter=0.0) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "12"}, 12.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, 30.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:00:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 -0000"}, 30.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"ratelimit": '"resolvers";r=0;t=57'}, 57.0),
        ({"ratelimit": '"resolvers";r=12;t=57'}, None),
        ({"ratelimit": '"resolvers";r=0;t=57', "retry-after": "3"}, 3.0),
    ],
)
def test_retry_after_is_read_in_all_its_forms(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers, NOON) == seconds
