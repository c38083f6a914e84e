"""When a failed request is worth another try, and how long to wait: values without a clock.

Sending requests is `hub_client`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from swarmd.core.errors import HubError


class HubUnreachable(HubError):
    """No answer, or none but overload, after all retries; what is cached may do."""


class NoConnection(HubUnreachable):
    """Not even a connection: no such host, nobody listening there, no network."""


class TransientError(Exception):
    """One request failed in a way that may pass; `retry_after_s` if the server said when."""

    def __init__(self, error: HubError, retry_after_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently to try again."""

    attempts: int = 6
    """Tries in a row without a single byte of progress."""
    first_s: float = 0.5
    cap_s: float = 20.0
    longest_s: float = 300.0
    """A server that asks to wait longer than this is taken at its word: give up."""

    def delay(self, failures: int, retry_after_s: float | None, jitter: float) -> float | None:
        """Seconds to wait after `failures` in a row, None to give up.

        `jitter` in [0, 1) spreads nodes that start together. What the server asked for is waited
        out in full, and only then spread.
        """
        if failures >= self.attempts:
            return None
        own = min(self.cap_s, self.first_s * 2.0 ** (failures - 1)) * (0.5 + jitter / 2)
        if retry_after_s is None:
            return own
        return None if retry_after_s > self.longest_s else retry_after_s + own


DEFAULT_RETRY = RetryPolicy()


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the server asks to wait: Retry-After (seconds or date) or the hub's RateLimit.

    `now` is in seconds since the Unix epoch.
    """
    value = headers.get("retry-after")
    if value is None:
        # https://huggingface.co/docs/hub/rate-limits: RateLimit: "api";r=0;t=57
        match = re.search(r";\s*r=0\s*;\s*t=(\d{1,6})\b", headers.get("ratelimit", ""))
        return float(match[1]) if match else None
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value.strip()):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.fromtimestamp(now, UTC)).total_seconds())
