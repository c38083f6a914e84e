"""What a request wants sampled: one frozen value, handed unchanged from the client to the last hop.

The arithmetic is `swarmd.engine.sampler`'s, stop strings the coordinator's (`swarmd.text.stop`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from swarmd.core.errors import RequestError

MAX_TOP_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_STOP_IDS = 256


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling parameters; names and meanings as in vLLM. Raises RequestError when out of range."""

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches p (nucleus sampling)."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Over prompt and output (Keskar et al. 2019); 1 is off."""
    presence_penalty: float = 0.0
    """Subtracted once from every token of the output so far."""
    frequency_penalty: float = 0.0
    """Subtracted once per occurrence in the output so far."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, added logit)."""
    seed: int = 0
    """64 bits; together with the position it determines every draw."""
    top_logprobs: int = 0
    """How many of the likeliest tokens to report beside each token."""

    def __post_init__(self) -> None:
        self._check("temperature", self.temperature, 0.0, 100.0)
        self._check("top_k", self.top_k, 0, 1 << 31)
        self._check("top_p", self.top_p, 1e-9, 1.0)
        self._check("min_p", self.min_p, 0.0, 1.0)
        self._check("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        self._check("presence_penalty", self.presence_penalty, -100.0, 100.0)
        self._check("frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        self._check("seed", self.seed, 0, (1 << 64) - 1)
        self._check("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        self._check("number of logit_bias entries", len(self.logit_bias), 0, MAX_LOGIT_BIAS)
        for token, bias in self.logit_bias:
            self._check("logit_bias token id", token, 0, 1 << 31)
            self._check("logit_bias", bias, -1000.0, 1000.0)

    @staticmethod
    def _check(name: str, value: float, low: float, high: float) -> None:
        if not (math.isfinite(value) and low <= value <= high):
            raise RequestError(f"{name} must be between {low:g} and {high:g}, not {value}")

    @property
    def needs_ids(self) -> bool:
        """Whether a draw depends on the ids so far."""
        return bool(
            self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty
        )
