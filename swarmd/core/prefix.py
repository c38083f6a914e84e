"""Names for beginnings of prompts, so that hops can share what they have computed for them.

The name of a unit of positions follows from its ids and from the name of the unit before it, as in
vLLM's automatic prefix caching. Who shares what is `swarmd.pipeline.prefix_index`'s business.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

PREFIX_UNIT = 64
"""Positions that are shared, or not, together."""
KEY_BYTES = 16


def first_key(ids: Sequence[int], model_digest: str, salt: bytes = b"") -> bytes:
    """Return a name for how a prompt begins, wherever and however it is computed; empty if short.

    Prompts of the same name are worth bringing together.
    """
    keys = prefix_keys(ids[:PREFIX_UNIT], model_digest, 0, salt)
    return keys[0] if keys else b""


def prefix_keys(
    ids: Sequence[int],
    model_digest: str,
    chunk_size: int,
    salt: bytes = b"",
    unit: int = PREFIX_UNIT,
) -> tuple[bytes, ...]:
    """Return one key for each whole unit of `ids`, 16 bytes each.

    Sessions share only with those of the same model, the same chunks, in which the same bits were
    computed, and the same salt: who does not know it can neither guess the keys nor find out
    whether a prompt has been seen.
    """
    kind = f"{model_digest} {chunk_size} ".encode()
    seed = hashlib.blake2b(kind + salt, digest_size=32).digest()
    keys: list[bytes] = []
    before = b""
    for start in range(0, len(ids) - unit + 1, unit):
        data = before + array("I", ids[start : start + unit]).tobytes()
        before = hashlib.blake2b(data, key=seed, digest_size=KEY_BYTES).digest()
        keys.append(before)
    return tuple(keys)
