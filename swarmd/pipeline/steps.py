"""Cutting and joining of steps, and the chunk boundaries that a sequence is computed in.

Which steps are sent when is the driver's and the hop table's decision.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

from swarmd.core.frames import Payload, Step


def rows(payload: Payload, start: int, stop: int) -> Payload:
    """Rows `[start, stop)` of the first dimension; shares the bytes."""
    if start == 0 and stop == payload.shape[0]:
        return payload
    width = payload.nbytes // payload.shape[0]
    data = memoryview(payload.data)[start * width : stop * width]
    return Payload(payload.dtype, (stop - start, *payload.shape[1:]), data)


def stack(payloads: Iterable[Payload]) -> Payload:
    """Payloads of equal dtype and width as one, along the first dimension."""
    parts = list(payloads)
    if len(parts) == 1:
        return parts[0]
    data = b"".join(part.data for part in parts)
    count = sum(part.shape[0] for part in parts)
    return Payload(parts[0].dtype, (count, *parts[0].shape[1:]), data)


def cut_chunks(position: int, chunks: Iterable[int], start: int, end: int) -> tuple[int, ...]:
    """The part of the chunks, the first of which lies at `position`, within `[start, end)`."""
    parts = []
    for size in chunks:
        part = min(position + size, end) - max(position, start)
        if part > 0:
            parts.append(part)
        position += size
    return tuple(parts)


def cut(step: Step, start: int, end: int) -> Step:
    """The part of a step that lies within positions `[start, end)`, which it must overlap."""
    start, end = max(start, step.position), min(end, step.end)
    if start == step.position and end == step.end:
        return step
    low, high = start - step.position, end - step.position
    return replace(
        step,
        position=start,
        chunks=cut_chunks(step.position, step.chunks, start, end),
        token_ids=step.token_ids[low:high],
        hidden=None if step.hidden is None else rows(step.hidden, low, high),
        wants=tuple(want for want in step.wants if start <= want < end),
    )


def take(line: deque[Step], most: int) -> Step:
    """Take the first step off a line of adjacent ones, as one with those after it of its round.

    It holds at most `most` positions, or is one that was longer already; the chunks within it stay
    as they were.
    """
    batch = [line.popleft()]
    length = batch[0].length
    while line and line[0].round == batch[0].round and length + line[0].length <= most:
        batch.append(line.popleft())
        length += batch[-1].length
    return _joined(batch)


def _joined(steps: list[Step]) -> Step:
    if len(steps) == 1:
        return steps[0]
    return replace(
        steps[0],
        chunks=tuple(size for step in steps for size in step.chunks),
        hidden=stack(step.hidden for step in steps if step.hidden is not None),
        wants=tuple(want for step in steps for want in step.wants),
    )


@dataclass(frozen=True, slots=True)
class ChunkPlan:
    """How a sequence is cut: the prompt every `chunk_size` positions, the output at each one.

    Where the prompt holds outputs of former turns, these are cut as outputs are.

    The same at every replay and every coordinator, so that the same bits are computed.
    """

    prompt_tokens: int
    chunk_size: int
    borders: tuple[int, ...] = ()
    """Where in the prompt former outputs begin and end, in turns; ascending."""

    def floor(self, position: int) -> int:
        """The start of the chunk that holds `position`."""
        if position >= self.prompt_tokens:
            return position
        turn = bisect_right(self.borders, position)
        if turn % 2:
            return position
        start = self.borders[turn - 1] if turn else 0
        return position - (position - start) % self.chunk_size

    def next(self, position: int, known: int, most: int) -> tuple[int, ...]:
        """Chunks of the step at `position`, a chunk's start, when ids up to `known` are there.

        A prompt chunk goes alone, so that stages overlap; up to `most` one-token chunks together.
        """
        if position >= self.prompt_tokens:
            return (1,) * min(most, known - position)
        turn = bisect_right(self.borders, position)
        border = self.borders[turn] if turn < len(self.borders) else self.prompt_tokens
        if turn % 2:
            return (1,) * min(most, border - position, known - position)
        end = self.floor(position) + self.chunk_size
        return (min(end, border, known) - position,)

    def together(self, position: int, known: int, most: int, until: int) -> tuple[int, ...]:
        """As `next`, and the chunks after it that begin below `until`, `most` positions in all."""
        chunks = list(self.next(position, known, most))
        reached = position + sum(chunks)
        while reached < min(until, known):
            more = self.next(reached, known, most)
            reached += sum(more)
            if reached > position + most:
                break
            chunks += more
        return tuple(chunks)


def borders_of(borders: tuple[int, ...], prompt: int, tokens: int) -> tuple[int, ...]:
    """The borders for a prompt that begins with `tokens` positions of a session.

    The session had these borders and a prompt of `prompt` tokens itself.
    """
    kept = [border for border in (*borders, prompt) if border <= tokens]
    return (*kept, tokens) if len(kept) % 2 else tuple(kept)
