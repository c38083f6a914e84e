"""Arithmetic on half-open byte ranges `[start, end)`: what is wanted, held and worth one request.

Where the bytes lie and come from is `partial_file` and `hub_client`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

Range = tuple[int, int]


def merge(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """Sorted and disjoint ranges; neighbours no more than `gap` bytes apart become one."""
    merged: list[Range] = []
    for start, end in sorted(r for r in ranges if r[0] < r[1]):
        if merged and start - merged[-1][1] <= gap:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def subtract(ranges: Iterable[Range], held: Iterable[Range]) -> list[Range]:
    """The parts of `ranges` that are not in `held`, sorted and disjoint."""
    rest: list[Range] = []
    holes = merge(held)
    first = 0
    for start, end in merge(ranges):
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        index = first
        while index < len(holes) and holes[index][0] < end:
            hole_start, hole_end = holes[index]
            if start < hole_start:
                rest.append((start, hole_start))
            start = max(start, hole_end)
            index += 1
        if start < end:
            rest.append((start, end))
    return rest


def cut(ranges: Iterable[Range], most: int) -> Iterator[Range]:
    """The same bytes in pieces of at most `most` bytes."""
    for start, end in ranges:
        for position in range(start, end, most):
            yield position, min(position + most, end)


def total(ranges: Sequence[Range]) -> int:
    """Number of bytes in disjoint ranges."""
    return sum(end - start for start, end in ranges)
