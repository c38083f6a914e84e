"""Runs a model as a chain of stages and compares every logit with `transformers.generate`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil
import tempfile
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from swarmd.core.peers import ModelInfo
from swarmd.core.span import Span
from swarmd.engine.load import load_stage
from swarmd.engine.stage import Batch, Segment, SequenceCache, Stage
from tests.engine.architectures import BLOCKS, VOCAB, Architecture
from tests.engine.sources import DirectorySource

PROMPT, NEW, SESSIONS = 40, 24, 4
CUTS = [(0, 1, 4), (0, 2, 4), (0, 3, 4), (0, 1, 2, 4), (0, 1, 3, 4), (0, 2, 3, 4)]
"""Every 2-way and every 3-way split of four blocks."""

LOGIT_TOLERANCE = 1e-4
CHUNKS = (16, 15, 9)
"""A prompt of 40 in uneven chunks."""


@dataclass
class Case:
    """One architecture: its checkpoint, what `generate` made of four prompts, and its stages."""

    source: DirectorySource
    ids: list[list[int]]
    """Per session prompt and output."""
    logits: torch.Tensor
    """(session, token, vocab)."""
    stages: dict[Span, Stage] = field(default_factory=dict)
    device: str = "cpu"

    def chain(self, cuts: tuple[int, ...]) -> list[Stage]:
        return [self.stage(Span(a, b)) for a, b in itertools.pairwise(cuts)]

    def stage(self, span: Span) -> Stage:
        if span not in self.stages:
            self.stages[span] = load_stage(
                self.source, span, device=self.device, dtype="float32", kv_memory=0
            )
        return self.stages[span]


@functools.lru_cache(maxsize=2)
def case(architecture: Architecture, device: str = "cpu") -> Case:
    """Build, save and run the reference; the last two are kept for the tests that follow."""
    model = architecture.build()
    directory = Path(tempfile.mkdtemp(prefix="swarmd-test-"))
    model.save_pretrained(directory)
    prompts = torch.randint(
        2, VOCAB, (SESSIONS, PROMPT), generator=torch.Generator().manual_seed(1)
    )
    made = model.to(device).generate(
        prompts.to(device),
        max_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.stack(made.logits, dim=1).float().cpu()
    found = Case(DirectorySource(directory), made.sequences.tolist(), logits, device=device)
    weakref.finalize(found, shutil.rmtree, directory)
    return found


class Session:
    """One sequence on a chain: its caches, how far it is, and the logits that came out."""

    def __init__(self, stages: Iterable[Stage], prompt: list[int]) -> None:
        self.caches: list[SequenceCache] = [stage.new_cache() for stage in stages]
        self.ids = list(prompt)
        self.position = 0
        self.logits: list[torch.Tensor] = []

    def next_chunk(self, chunks: tuple[int, ...]) -> int:
        """Rows of the next step: a chunk of the prompt, then one."""
        ends = [sum(chunks[: n + 1]) for n in range(len(chunks))]
        rest = len(self.ids) - self.position
        return next((min(end - self.position, rest) for end in ends if end > self.position), 1)


def step(stages: list[Stage], work: list[tuple[Session, int]]) -> None:
    """Run one microbatch through the chain: per session so many rows; sample where they end."""
    rows = torch.tensor([s.ids[i] for s, n in work for i in range(s.position, s.position + n)])
    ends = torch.tensor([n for _, n in work]).cumsum(0) - 1
    hidden = None
    for index, stage in enumerate(stages):
        segments = tuple(Segment(s.caches[index], s.position, n) for s, n in work)
        wanted = tuple(ends.tolist()) if stage.is_last else ()
        ids = rows if stage.is_first else None
        batch = Batch(stage.span.start, stage.span.end, segments, ids, hidden, wanted)
        hidden = stage.forward(batch)
    assert hidden is not None
    for (session, count), row in zip(work, hidden, strict=True):
        session.position += count
        if session.position == len(session.ids):
            session.logits.append(row.cpu())
            session.ids.append(int(row.argmax()))


def run_one(stages: list[Stage], prompt: list[int], chunks: tuple[int, ...] = ()) -> Session:
    """Greedy generation by one session alone."""
    session = Session(stages, prompt)
    while len(session.logits) < NEW:
        step(stages, [(session, session.next_chunk(chunks or (len(prompt),)))])
    return session


def run_together(
    stages: list[Stage], prompts: list[list[int]], chunks: tuple[int, ...] = CHUNKS
) -> list[Session]:
    """Greedy generation by sessions that come one after the other and share every microbatch.

    A microbatch has all decodes and one chunk of one prompt, as the batcher would choose.
    """
    sessions = [Session(stages, prompt) for prompt in prompts]
    while any(len(session.logits) < NEW for session in sessions):
        ready = [s for s in sessions if len(s.logits) < NEW]
        decodes = [(s, 1) for s in ready if s.logits]
        prefills = [(s, s.next_chunk(chunks)) for s in ready if not s.logits]
        step(stages, decodes + prefills[:1])
    return sessions


def assert_as_generated(
    session: Session,
    wanted: list[int],
    logits: torch.Tensor,
    tolerance: float = LOGIT_TOLERANCE,
) -> None:
    """Ids equal and no logit further than the tolerance from `generate`'s."""
    assert session.ids == wanted
    error = (torch.stack(session.logits) - logits).abs().max().item()
    assert error <= tolerance, f"logits differ by {error:.1e}"


def with_length(info: ModelInfo, max_model_len: int) -> ModelInfo:
    """Return the same model, served for more positions."""
    return dataclasses.replace(info, max_model_len=max_model_len)


assert BLOCKS == 4, "CUTS are for four blocks"
