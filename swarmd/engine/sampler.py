"""Draws tokens from logits: a function of (logits, parameters, ids so far, seed, position).

When a token is wanted, and what happens to it, is `swarmd.pipeline`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from swarmd.core.errors import RequestError, SessionError
from swarmd.core.sampling import SamplingParams
from swarmd.engine import many_draws
from swarmd.engine.norms import norms
from swarmd.engine.shortlist import shortlist


@dataclass(slots=True)
class Sampled:
    """One drawn token. Log-probabilities are the model's own, before any parameter is applied."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(id, logprob) of the likeliest tokens, likeliest first, as many as were asked for."""


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) fixed by seed and position: Philox 4x64, counter = position."""
    raw = int(np.random.Philox(key=seed, counter=position).random_raw())
    return float((raw >> 11) * 2.0**-53)


class Sampler:
    """Draws the tokens of one session. Holds counts only as a cache: they follow the ids given."""

    def __init__(self, params: SamplingParams, vocab_size: int) -> None:
        self.params = params
        self.vocab_size = vocab_size
        self._counts = _Counts(vocab_size) if params.needs_ids else None
        self._bias = _bias_tensors(params, vocab_size)

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the draw is the likeliest token of the untouched logits."""
        return self.params.temperature == 0 and self._counts is None and self._bias is None

    def sample(
        self, logits: torch.Tensor, ids_so_far: Sequence[int], prompt_tokens: int, position: int
    ) -> Sampled:
        """Draw the token for `position` from logits (vocab_size,) float32, which stay as they are.

        `ids_so_far` are prompt and output, `prompt_tokens` of them prompt. Raises SessionError when
        the model gave no finite logits.
        """
        draw = Draw(self, ids_so_far, prompt_tokens, position)
        return sample_rows(logits[None], [draw])[0]

    def choose(self, logits: torch.Tensor, draw: Draw) -> int:
        """Return the token id drawn from logits (vocab_size,)."""
        changed = self.changed(logits, draw)
        if self.params.temperature == 0:
            return int(changed.argmax())
        return self._invert(changed, draw.position)

    def changed(self, logits: torch.Tensor, draw: Draw) -> torch.Tensor:
        """Return the logits after bias and penalties."""
        if self._bias is not None:
            tokens, amounts = self._bias
            logits = logits.clone()
            logits[tokens.to(logits.device)] += amounts.to(logits.device)
        if self._counts is not None:
            self._counts.follow(draw.ids_so_far, draw.prompt_tokens)
            logits = penalise(logits, self._counts.all, self._counts.output, self.params)
        return logits

    def _invert(self, logits: torch.Tensor, position: int) -> int:
        """Draw by inverting the distribution function over token ids, in double precision."""
        logits = logits / self.params.temperature
        tokens = shortlist(logits, self.params)
        kept = logits if tokens is None else logits[tokens]
        cumulative = torch.softmax(kept.double(), dim=-1).cumsum(-1)
        target = uniform(self.params.seed, position) * float(cumulative[-1])
        place = int(torch.searchsorted(cumulative, target, right=True))
        if place == len(kept):
            # Rounding left the target at the very end, past the last token that can be drawn.
            place = int(torch.nonzero(kept > -torch.inf)[-1])
        return place if tokens is None else int(tokens[place])


@dataclass(slots=True)
class Draw:
    """One token wanted: whose, for which position, after which ids.

    The first `prompt_tokens` of `ids_so_far` are prompt; it may be empty where parameters do not
    need ids.
    """

    sampler: Sampler
    ids_so_far: Sequence[int]
    prompt_tokens: int
    position: int


def sample_rows(logits: torch.Tensor, draws: Sequence[Draw]) -> list[Sampled]:
    """Draw one token per row of logits (n, vocab_size) float32, greedy rows all at once.

    Raises SessionError when a row is not finite: weights or activations are damaged.
    """
    found = norms(logits)
    chosen: list[tuple[int, float]] = []
    rows = []
    for draw, (norm, likely, most) in zip(draws, found, strict=True):
        if not math.isfinite(norm):
            raise SessionError(f"the model gave no finite logits for position {draw.position}")
        if not draw.sampler.is_plain_greedy:
            rows.append(len(chosen))
        chosen.append((likely, most))
    if rows:
        _choose(logits, draws, rows, chosen)
    results = []
    for row, (draw, (norm, _, _), (token, logit)) in enumerate(
        zip(draws, found, chosen, strict=True)
    ):
        top = draw.sampler.params.top_logprobs
        likeliest = _likeliest(logits[row], norm, top) if top else ()
        results.append(Sampled(token, logit - norm, likeliest))
    return results


def _choose(
    logits: torch.Tensor,
    draws: Sequence[Draw],
    rows: Sequence[int],
    chosen: list[tuple[int, float]],
) -> None:
    """Put the drawn token and its logit of some rows into `chosen`."""
    if logits.device.type == "cpu":
        for row in rows:
            token = draws[row].sampler.choose(logits[row], draws[row])
            chosen[row] = token, float(logits[row, token])
    else:
        some = [draws[row] for row in rows]
        changed = torch.stack(
            [d.sampler.changed(logits[r], d) for r, d in zip(rows, some, strict=True)]
        )
        uniforms = [uniform(d.sampler.params.seed, d.position) for d in some]
        tokens = many_draws.draw(changed, [d.sampler.params for d in some], uniforms)
        places = torch.tensor(rows).to(logits.device)
        pairs = torch.stack([tokens.double(), logits[places, tokens].double()], 1).tolist()
        for row, (token, logit) in zip(rows, pairs, strict=True):
            chosen[row] = int(token), logit


def _likeliest(logits: torch.Tensor, norm: float, count: int) -> tuple[tuple[int, float], ...]:
    """Return the likeliest tokens with their log-probabilities."""
    values, tokens = (logits - norm).topk(min(count, logits.shape[-1]))
    return tuple(zip(tokens.tolist(), values.tolist(), strict=True))


def penalise(
    logits: torch.Tensor, seen: torch.Tensor, output: torch.Tensor, params: SamplingParams
) -> torch.Tensor:
    """Apply repetition (over all ids), presence and frequency penalties (over the output).

    `seen` and `output` count tokens, (vocab_size,) each.
    """
    seen, output = seen.to(logits.device), output.to(logits.device)
    if params.repetition_penalty != 1.0:
        factor = params.repetition_penalty
        scaled = torch.where(logits > 0, logits / factor, logits * factor)
        logits = torch.where(seen > 0, scaled, logits)
    if params.frequency_penalty:
        logits = logits - params.frequency_penalty * output
    if params.presence_penalty:
        logits = logits - params.presence_penalty * (output > 0)
    return logits


def restrict(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Set to -inf what min-p, top-k and top-p leave out, in this order, as vLLM does.

    The witness of `swarmd.engine.shortlist`, which finds the same without sorting all.
    """
    if params.min_p > 0:
        floor = logits.max() + math.log(params.min_p)
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if 0 < params.top_k < logits.shape[-1]:
        smallest = logits.topk(params.top_k).values[-1]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if params.top_p < 1.0:
        logits = _nucleus(logits, params.top_p)
    return logits


def _nucleus(logits: torch.Tensor, top_p: float) -> torch.Tensor:
    """Keep the fewest likeliest tokens whose probabilities reach top_p; always at least one."""
    ordered, tokens = logits.sort(descending=True, stable=True)
    before = torch.softmax(ordered, dim=-1).cumsum(-1).roll(1)
    before[0] = 0.0
    return logits.index_fill(-1, tokens[before >= top_p], -torch.inf)


class _Counts:
    """How often each token occurs, over prompt and output and over the output alone."""

    def __init__(self, vocab_size: int) -> None:
        self.all = torch.zeros(vocab_size)
        self.output = torch.zeros(vocab_size)
        self._ids: list[int] = []
        self._prompt_tokens = 0

    def follow(self, ids: Sequence[int], prompt_tokens: int) -> None:
        """Bring the counts to `ids`: by the new ones only, unless the past has changed."""
        known = len(self._ids)
        if prompt_tokens != self._prompt_tokens or list(ids[:known]) != self._ids:
            self._clear(prompt_tokens)
            known = 0
        for place in range(known, len(ids)):
            self._add(ids[place], is_output=place >= prompt_tokens)

    def _clear(self, prompt_tokens: int) -> None:
        self.all.zero_()
        self.output.zero_()
        self._ids.clear()
        self._prompt_tokens = prompt_tokens

    def _add(self, token: int, is_output: bool) -> None:
        self._ids.append(token)
        self.all[token] += 1
        if is_output:
            self.output[token] += 1


def _bias_tensors(
    params: SamplingParams, vocab_size: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    if not params.logit_bias:
        return None
    merged: dict[int, float] = {}
    for token, amount in params.logit_bias:
        if token >= vocab_size:
            raise RequestError(f"logit_bias token id {token}: the model has {vocab_size} tokens")
        merged[token] = merged.get(token, 0.0) + amount
    return torch.tensor(list(merged)), torch.tensor(list(merged.values()))
