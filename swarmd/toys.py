"""A stage that costs nothing, for tests: its tokens depend on everything that it has seen.

The swarm that is built of such stages is in `swarmd.simulation`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b

from swarmd.core.frames import DType, Payload, Step
from swarmd.core.peers import ModelInfo
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.pipeline.events import Computed, Drawn, Export, Exported, Import, Imported, Submit
from swarmd.pipeline.steps import ChunkPlan

TOY_HIDDEN = 4
"""Floats per position: 16 bytes, one digest."""


def toy_model(num_blocks: int = 8, vocab_size: int = 50_000, max_len: int = 4096) -> ModelInfo:
    """A model without weights."""
    return ModelInfo("toy", "ab" * 32, num_blocks, TOY_HIDDEN, vocab_size, max_len)


def _digest(*parts: object) -> bytes:
    return blake2b(repr(parts).encode(), digest_size=4 * TOY_HIDDEN).digest()


def _toy_token(state: bytes, position: int, submit: Submit, vocab_size: int) -> int:
    sampling = submit.sampling or SamplingParams()
    ids = submit.ids[: position + 1] if sampling.needs_ids else ()
    return int.from_bytes(_digest(state, sampling.seed, ids)[:8], "big") % vocab_size


@dataclass(slots=True)
class _ToyKV:
    blocks: Span
    states: list[list[bytes]] = field(default_factory=list)
    """For each position the digest of every block."""


class ToyStage:
    """Blocks whose every output is a digest of all inputs so far, their positions and chunks.

    So any mistake on the way (a position lost, doubled, reordered or computed in another chunk)
    changes every token that follows.
    """

    def __init__(self, model: ModelInfo, *, chunk_exact: bool = False) -> None:
        self.model = model
        self.chunk_exact = chunk_exact
        """Whether it does not matter in which chunks positions are computed."""
        self.applied: set[tuple[bytes, int, int, int]] = set()
        """(session, epoch, round, position): each may come once."""
        self._kv: dict[bytes, _ToyKV] = {}
        self._units: dict[bytes, _ToyKV] = {}

    def attach(self, session: bytes, units: tuple[bytes, ...], length: int = 0) -> None:
        """Begin a session, which must be new, with shared units, which must be there.

        It holds the first `length` positions of them, which end within the last one; 0: all.
        """
        assert session not in self._kv, "attached to a session that has begun"
        parts = [self._units[unit] for unit in units]
        states = [state for part in parts for state in part.states]
        assert len(states) - len(parts[-1].states) < (length or len(states)) <= len(states)
        del states[length or len(states) :]
        self._kv[session] = _ToyKV(parts[0].blocks, states)

    def freeze(self, session: bytes, unit: bytes, start: int, end: int) -> None:
        """Keep computed positions of a session as a shared unit, which must be new."""
        kv = self._kv[session]
        assert len(kv.states) >= end, "shared before it was computed"
        assert unit not in self._units, "a unit was made twice"
        self._units[unit] = _ToyKV(kv.blocks, kv.states[start:end])

    def drop(self, unit: bytes) -> None:
        """Forget a shared unit, which must be there."""
        del self._units[unit]

    def export(self, op: Export) -> Exported:
        """Take computed positions out of a session."""
        kv = self._kv[op.session]
        assert len(kv.states) >= op.end, "taken out before it was computed"
        blocks = []
        for block in range(op.blocks.start - kv.blocks.start, op.blocks.end - kv.blocks.start):
            rows = [states[block] for states in kv.states[op.start : op.end]]
            payload = Payload(DType.FLOAT32, (1, len(rows), TOY_HIDDEN), b"".join(rows))
            blocks.append({"key": payload, "value": payload})
        return Exported(op.session, op.ticket, op.start, tuple(blocks))

    def take_in(self, op: Import) -> Imported:
        """Put positions in that follow what is held. Raises AssertionError otherwise."""
        kv = self._kv.setdefault(op.session, _ToyKV(op.blocks))
        assert kv.blocks == op.blocks, "KV of other blocks"
        assert len(kv.states) == op.position, f"{len(kv.states)} held, KV from {op.position}"
        width = 4 * TOY_HIDDEN
        for row in range(op.parts[0]["key"].shape[1]):
            place = slice(row * width, (row + 1) * width)
            kv.states.append([bytes(part["key"].data[place]) for part in op.parts])
        return Imported(op.session, op.ticket)

    @property
    def units(self) -> int:
        """Number of shared units."""
        return len(self._units)

    def compute(self, submit: Submit) -> Computed:
        """Apply a step, which must follow what is held. Raises AssertionError otherwise."""
        kv = self._kv.setdefault(submit.session, _ToyKV(submit.blocks))
        step = submit.step
        assert kv.blocks == submit.blocks, "KV of other blocks"
        assert len(kv.states) == step.position, f"{len(kv.states)} held, step at {step.position}"
        position = step.position
        for size in step.chunks:
            start = position
            for position in range(start, start + size):
                key = (step.session, step.epoch, step.round, position)
                assert key not in self.applied, f"position {position} applied twice in a round"
                self.applied.add(key)
                kv.states.append(self._apply(kv, submit, position, start))
            position += 1
        return self._result(kv, submit)

    def truncate(self, session: bytes, length: int) -> None:
        """Forget positions at and above `length`."""
        if session in self._kv:
            del self._kv[session].states[length:]

    def free(self, session: bytes) -> None:
        """Forget the session."""
        self._kv.pop(session, None)
        self.applied = {key for key in self.applied if key[0] != session}

    def __len__(self) -> int:
        return len(self._kv)

    def _apply(self, kv: _ToyKV, submit: Submit, position: int, chunk: int) -> list[bytes]:
        step = submit.step
        index = position - step.position
        if step.hidden is None:
            value = _digest("embedding", step.token_ids[index])
        else:
            width = 4 * TOY_HIDDEN
            value = bytes(step.hidden.data[index * width : (index + 1) * width])
        past = kv.states[-1] if kv.states else [b""] * len(kv.blocks)
        states = []
        chunk = 0 if self.chunk_exact else chunk
        for block, before in zip(range(kv.blocks.start, kv.blocks.end), past, strict=True):
            where = b"%d,%d,%d;" % (block, position, chunk)
            value = blake2b(where + value + before, digest_size=4 * TOY_HIDDEN).digest()
            states.append(value)
        return states

    def _result(self, kv: _ToyKV, submit: Submit) -> Computed:
        step = submit.step
        if submit.blocks.end == self.model.num_blocks:
            tokens = tuple(
                Drawn(
                    want + 1, _toy_token(kv.states[want][-1], want, submit, self.model.vocab_size)
                )
                for want in step.wants
            )
            return Computed(submit.session, submit.ticket, tokens=tokens)
        data = b"".join(states[-1] for states in kv.states[step.position :])
        payload = Payload(DType.FLOAT32, (step.length, TOY_HIDDEN), data)
        return Computed(submit.session, submit.ticket, payload)


class ToyAccount:
    """A KV budget in bytes, one per position and block."""

    def __init__(self, total: int) -> None:
        self.total = self.total_bytes = total
        self.reserved: dict[bytes, int] = {}

    def reserve(self, session: bytes, blocks: Span, positions: int) -> bool:
        need = positions * len(blocks)
        others = sum(self.reserved.values()) - self.reserved.get(session, 0)
        if others + need > self.total:
            return False
        self.reserved[session] = need
        return True

    def release(self, session: bytes) -> None:
        self.reserved.pop(session, None)

    def lacking(self, session: bytes, blocks: Span, positions: int) -> int:
        growth = self.size(blocks, positions) - self.reserved.get(session, 0)
        return growth - self.free_bytes()

    def size(self, blocks: Span, positions: int) -> int:
        return positions * len(blocks)

    def capacity(self, blocks: Span) -> int:
        return self.total // len(blocks)

    def free_bytes(self) -> int:
        return self.total - sum(self.reserved.values())


def toy_oracle(
    model: ModelInfo,
    prompt_ids: tuple[int, ...],
    sampling: SamplingParams,
    max_tokens: int,
    chunk_size: int,
    *,
    chunk_exact: bool = False,
    borders: tuple[int, ...] = (),
) -> list[int]:
    """The output ids of one process that holds all blocks and is never disturbed."""
    stage = ToyStage(model, chunk_exact=chunk_exact)
    blocks = Span(0, model.num_blocks)
    plan = ChunkPlan(len(prompt_ids), chunk_size, borders)
    ids = list(prompt_ids)
    position = 0
    while len(ids) < len(prompt_ids) + max_tokens:
        chunks = plan.next(position, len(ids), 1)
        end = position + sum(chunks)
        wants = (end - 1,) if end == len(ids) else ()
        step = Step(b"", 1, 0, position, chunks, tuple(ids[position:end]), wants=wants)
        known = tuple(ids[:end])
        done = stage.compute(Submit(b"", 0, blocks, step, len(ids), sampling, known))
        ids += [token.id for token in done.tokens]
        position = end
    return ids[len(prompt_ids) :]
