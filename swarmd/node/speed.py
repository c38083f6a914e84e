"""How quick a stage is for one session: what its node announces of itself.

Measured from whatever microbatches there are. How many sessions are there besides is announced
apart and weighed by `swarmd.swarm.terms`: a busy node must not look slow twice.
"""

from __future__ import annotations

from swarmd.engine.batcher import DECODE_ROWS
from swarmd.node.compute_log import ComputeStats
from swarmd.node.pace import MIN_ROWS, StepCost, moved


class Speed:
    """Keeps `step_ms` and `prefill_ms` of a stage of so many blocks: of all of them, though a
    session may use a part."""

    def __init__(self, blocks: int, stats: ComputeStats) -> None:
        self._blocks = blocks
        self._stats = stats
        self._decode = StepCost()
        self._row_s = 0.0
        stats.step_ms = stats.prefill_ms = 0.0

    def decode_rows(self, decodes: int) -> float:
        """Return how many rows of a prompt take as long as one of so many decodes."""
        one = self._decode.of(decodes) / decodes
        return max(1.0, one / self._row_s) if one and self._row_s else DECODE_ROWS

    def note(self, decodes: int, rows: int, blocks: int, seconds: float) -> None:
        """Note a microbatch: its steps of one position, a prompt's rows, the blocks that it ran."""
        whole = seconds * self._blocks / blocks
        if not rows:
            self._decode.add(decodes, whole)
            self._stats.step_ms = 1000 * self._decode.of(1)
        elif rows >= MIN_ROWS:
            beside = self._decode.of(decodes) if decodes else 0.0
            self._row_s = moved(self._row_s, max(0.0, whole - beside) / rows)
            self._stats.prefill_ms = 1000 * self._row_s
