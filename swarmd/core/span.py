"""Spans: half-open intervals `[start, end)` of a model's blocks, and what they cover."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from swarmd.core.errors import ConfigError


@dataclass(frozen=True, order=True, slots=True)
class Span:
    """Contiguous blocks `[start, end)`; never empty."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ConfigError(f"a span needs 0 <= start < end, not {self.start}:{self.end}")

    def __len__(self) -> int:
        return self.end - self.start

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"

    def __contains__(self, block: object) -> bool:
        return isinstance(block, int) and self.start <= block < self.end

    def covers(self, other: Span) -> bool:
        """Whether every block of `other` is in this span."""
        return self.start <= other.start and other.end <= self.end

    def meets(self, other: Span) -> bool:
        """Whether some block of `other` is in this span."""
        return self.start < other.end and other.start < self.end

    @classmethod
    def parse(cls, text: str, num_blocks: int | None = None) -> Span:
        """Read `"A:B"`; an empty A is 0 and an empty B is `num_blocks`.

        Raises ConfigError for anything that is not a span of a model with `num_blocks` blocks.
        """
        start, colon, end = text.partition(":")
        if not colon or (not end and num_blocks is None):
            raise ConfigError(f"blocks {text!r}: expected START:END such as 0:8")
        try:
            span = cls(int(start or 0), int(end) if end else num_blocks or 0)
        except ValueError:
            raise ConfigError(f"blocks {text!r}: START and END must be whole numbers") from None
        if num_blocks is not None and span.end > num_blocks:
            raise ConfigError(f"blocks {text!r}: the model has {num_blocks} blocks, 0:{num_blocks}")
        return span


def missing_blocks(spans: Iterable[Span], num_blocks: int) -> tuple[tuple[int, int], ...]:
    """Return the gaps in `[0, num_blocks)` that no span covers, as `(start, end)` pairs."""
    gaps: list[tuple[int, int]] = []
    reached = 0
    for span in sorted(spans):
        if span.start > reached:
            gaps.append((reached, min(span.start, num_blocks)))
        reached = max(reached, span.end)
        if reached >= num_blocks:
            return tuple(gaps)
    if reached < num_blocks:
        gaps.append((reached, num_blocks))
    return tuple(gaps)


def replicas_per_block(spans: Iterable[Span], num_blocks: int) -> list[int]:
    """Return for each block how many of the spans hold it."""
    counts = [0] * num_blocks
    for span in spans:
        for block in range(span.start, min(span.end, num_blocks)):
            counts[block] += 1
    return counts
