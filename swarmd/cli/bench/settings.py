"""What a benchmark is told: one frozen value, made of the flags and the scenario's own defaults.

What the numbers are used for is each scenario's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from swarmd.core.errors import UsageError

_COUNT = re.compile(r"(\d+)(k?)")


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a scenario may look at. Its module's `DEFAULTS` say what it takes."""

    model: str = "1.1b"
    """One of `models.SHAPES`, `demo`, or the directory of a model."""
    dtype: str = "bfloat16"
    sessions: tuple[int, ...] = (1,)
    prompts: tuple[int, ...] = (64,)
    """Lengths in tokens."""
    tokens: int = 32
    """To generate in each session."""
    rounds: int = 3
    """The median counts."""
    stages: int = 2
    threads: int = 1
    """Of each node."""
    checked: int = 4
    """Sessions of a crowd that are run once more alone, to compare the ids."""
    budget_s: float = 600.0
    allow_busy: bool = False
    max_busy: float = 0.15
    """Share of the machine that other processes may take while something is measured."""
    baselines: bool = True


def counts(text: str, what: str) -> tuple[int, ...]:
    """Parse `"1,4,16"` or `"512,2k"`. Raises UsageError."""
    found = [_COUNT.fullmatch(word.strip()) for word in text.split(",")]
    values = [int(m[1]) * (1024 if m[2] else 1) for m in found if m]
    if len(values) != len(found) or not all(0 < value <= 1 << 20 for value in values):
        raise UsageError(f"{what} {text!r}: expected whole numbers with commas, such as 1,4,16")
    return tuple(dict.fromkeys(values))
