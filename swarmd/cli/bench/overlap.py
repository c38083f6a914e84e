"""When stages computed at the same time, from the intervals that they tell.

Arithmetic on intervals; where they come from is `readings`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Interval = tuple[float, float]


def share_of_all(stages: Sequence[Iterable[Interval]], start: float, end: float) -> float:
    """Return the share of `[start, end]` in which every stage was within one of its intervals."""
    common: list[Interval] = [(start, end)]
    for intervals in stages:
        common = _both(common, _union(intervals))
    return sum(b - a for a, b in common) / (end - start) if end > start else 0.0


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same moments in intervals that do not touch, in order."""
    merged: list[Interval] = []
    for began, ended in sorted(intervals):
        if merged and began <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], ended))
        else:
            merged.append((began, ended))
    return merged


def _both(a: Sequence[Interval], b: Sequence[Interval]) -> list[Interval]:
    """The moments that are in both; each is in order and does not touch itself."""
    found: list[Interval] = []
    i = j = 0
    while i < len(a) and j < len(b):
        began, ended = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if began < ended:
            found.append((began, ended))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return found
