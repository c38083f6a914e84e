"""One session's keys and values on one stage, and the byte budget that all sessions share.

Which positions are right to keep is `swarmd.pipeline`'s business; the arithmetic over them is
`swarmd.engine.attention`'s.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from swarmd.engine.module_state import Saved

STEP = 64
"""Positions by which storage grows at least."""


class SequenceCache(Protocol):
    """What a session has left on a stage: positions `[0, length)`."""

    length: int
    """Positions held; set by the stage after each forward."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        ...

    def truncate(self, length: int) -> int:
        """Forget every position from `length` on; return the length that remains.

        It is lower than asked when the state cannot be rewound: 0 means "start again".
        """
        ...


class BlockKV:
    """Keys and values of one block: `(kv_heads, capacity, head_dim)`, heads outermost.

    Per head contiguous, so that a decode step streams each head's history once.
    """

    __slots__ = ("capacity", "key", "value")

    def __init__(self) -> None:
        self.capacity = 0
        self.key: torch.Tensor | None = None
        self.value: torch.Tensor | None = None

    def write(self, key: torch.Tensor, value: torch.Tensor, position: int) -> None:
        """Store `(kv_heads, n, head_dim)` at positions `[position, position + n)`."""
        end = position + key.shape[1]
        if end > self.capacity:
            self._grow(key, value, end, position)
        assert self.key is not None
        assert self.value is not None
        self.key[:, position:end] = key
        self.value[:, position:end] = value

    def _grow(self, key: torch.Tensor, value: torch.Tensor, end: int, keep: int) -> None:
        # A twelfth on top keeps the copying linear over a long generation.
        wanted = max(end, self.capacity + self.capacity // 12)
        self.capacity = -(-wanted // STEP) * STEP
        self.key = self._resized(self.key, key, keep)
        self.value = self._resized(self.value, value, keep)

    def _resized(self, old: torch.Tensor | None, like: torch.Tensor, keep: int) -> torch.Tensor:
        fresh = like.new_empty(like.shape[0], self.capacity, like.shape[2])
        if old is not None and keep:
            fresh[:, :keep] = old[:, :keep]
        return fresh

    @property
    def nbytes(self) -> int:
        if self.key is None or self.value is None:
            return 0
        return self.key.nbytes + self.value.nbytes


class RaggedCache:
    """A session's KV for the ragged path, one `BlockKV` per block of the stage's span."""

    __slots__ = ("blocks", "length")

    def __init__(self, num_blocks: int) -> None:
        self.blocks = [BlockKV() for _ in range(num_blocks)]
        self.length = 0

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self.blocks)

    def truncate(self, length: int) -> int:
        self.length = max(0, min(self.length, length))
        return self.length


class OneSessionCache:
    """A session's state on the path of one session per forward: transformers' own cache."""

    __slots__ = ("left_on_modules", "length", "state", "stretch")

    def __init__(self) -> None:
        self.length = 0
        self.state: Any = None
        self.stretch: tuple[int, int] | None = None
        """The blocks [entry, exit) that `state` belongs to."""
        self.left_on_modules: Saved = []
        """See `swarmd.engine.module_state`."""

    @property
    def nbytes(self) -> int:
        left = [value for _, _, value in self.left_on_modules]
        return sum(tensor.nbytes for tensor in _tensors_in([self.state, left]))

    def truncate(self, length: int) -> int:
        """See `SequenceCache`. Recurrent states and full sliding windows start again from 0."""
        removed = self.length - max(0, min(self.length, length))
        if removed and not self._crop(removed):
            removed = self.length
        if removed == self.length:
            self.state, self.stretch, self.left_on_modules = None, None, []
        self.length -= removed
        return self.length

    def _crop(self, removed: int) -> bool:
        """Forget the last positions, if the state allows it."""
        if self.left_on_modules:
            return False
        try:
            self.state.crop(-removed)
        except (RuntimeError, ValueError, AttributeError):
            return False
        return True


def _tensors_in(value: object) -> Iterator[torch.Tensor]:
    """Every tensor that a cache holds, in its layers, lists and dicts."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)
    elif type(value).__module__.startswith("transformers."):
        yield from _tensors_in(vars(value))


class KVBudget:
    """Bytes of KV that sessions may use together. Reserving counts; nothing is allocated.

    Used from the event loop and the compute thread, hence the lock.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._reserved: dict[bytes, int] = {}
        self._used = 0
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """Bytes that no session has reserved."""
        return self.total_bytes - self._used

    @property
    def used_bytes(self) -> int:
        return self._used

    def reserve(self, key: bytes, nbytes: int) -> bool:
        """Set the reservation of `key` to `nbytes`; without room change nothing, return False."""
        with self._lock:
            growth = nbytes - self._reserved.get(key, 0)
            if growth > self.free_bytes:
                return False
            self._reserved[key] = nbytes
            self._used += growth
            return True

    def release(self, key: bytes) -> int:
        """Drop the reservation of `key`; return the bytes that came free (0 if it had none)."""
        with self._lock:
            held = self._reserved.pop(key, 0)
            self._used -= held
            return held
