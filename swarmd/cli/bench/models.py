"""The models that are measured: random Llamas made once per machine, the demo model, or any other.

Where the weights are written and how a model is cut into spans; making them is the witness's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarmd.cli.bench.witness import witness
from swarmd.cli.demo import demo_model
from swarmd.core.errors import UsageError

SHAPES: Mapping[str, Mapping[str, int]] = {
    "1.1b": {"num_hidden_layers": 22, "hidden_size": 2048, "intermediate_size": 5632},
    "small": {"num_hidden_layers": 4, "hidden_size": 512, "intermediate_size": 1408},
    "tiny": {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "vocab_size": 512,
    },
}
_RECIPE = 2
"""Goes up with every change of how they are made, so that no old one is taken from the cache."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model on disk, and what a benchmark must know of it."""

    name: str
    directory: Path
    dtype: str
    blocks: int
    vocab_size: int
    max_len: int
    head_blocks: float
    """What the head costs, in blocks."""

    def spans(self, stages: int) -> tuple[str, ...]:
        """Cut into spans of about the same cost, the head counted. Raises UsageError."""
        if not 1 <= stages <= self.blocks:
            raise UsageError(f"{self.blocks} blocks cannot be cut into {stages} spans")
        share = (self.blocks + self.head_blocks) / stages
        ends = [round(share * n) for n in range(1, stages)]
        # A large head on a small model: every stage has at least one block all the same.
        ends = [min(end, self.blocks - stages + n) for n, end in enumerate(ends, start=1)]
        ends = [max(end, n) for n, end in enumerate(ends, start=1)]
        bounds = [0, *ends, self.blocks]
        return tuple(f"{a}:{b}" for a, b in itertools.pairwise(bounds))

    def as_dict(self) -> dict[str, object]:
        return {"name": self.name, "dtype": self.dtype, "blocks": self.blocks}


def find(name: str, dtype: str) -> Model:
    """Return the model, made now if it is a shape that this machine has not made yet."""
    if name in SHAPES:
        return _described(name, _made(name, dtype), dtype)
    directory = demo_model() if name == "demo" else Path(name)
    if not (directory / "config.json").is_file():
        known = ", ".join([*SHAPES, "demo"])
        raise UsageError(f"no model {name!r}: name one of {known}, or a model's directory")
    return _described(name, directory, dtype)


def cache_dir(env: Mapping[str, str] = os.environ) -> Path:
    """Return where made models are kept: $XDG_CACHE_HOME/swarmd/bench, or below ~/.cache."""
    base = env.get("XDG_CACHE_HOME") or Path(env.get("HOME", "~")).expanduser() / ".cache"
    return Path(base) / "swarmd" / "bench"


def _made(name: str, dtype: str) -> Path:
    recipe = json.dumps([_RECIPE, dtype, SHAPES[name]], sort_keys=True)
    mark = hashlib.sha256(recipe.encode()).hexdigest()[:8]
    target = cache_dir() / f"{name}-{dtype}-{mark}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="making-", dir=target.parent))
    try:
        witness("make", {"directory": str(work), "dtype": dtype, "shape": dict(SHAPES[name])})
        work.rename(target)
    except OSError:
        if not target.is_dir():  # else another benchmark was faster
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _described(name: str, directory: Path, dtype: str) -> Model:
    config = json.loads((directory / "config.json").read_text())
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    return Model(
        name=name,
        directory=directory,
        dtype=dtype,
        blocks=config["num_hidden_layers"],
        vocab_size=vocab,
        max_len=config["max_position_embeddings"],
        head_blocks=vocab * hidden / _block_weights(config),
    )


def _block_weights(config: Mapping[str, int]) -> int:
    """Weights of a Llama-like block."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    return hidden * (2 * width * (heads + kv_heads) + 3 * config["intermediate_size"])


def prompts(model: Model, count: int, length: int, salt: str = "") -> list[Sequence[int]]:
    """Return random prompts, the same ones at every call; session i's is the same in any crowd."""
    import random

    drawn: list[Sequence[int]] = []
    for index in range(count):
        rng = random.Random(f"{salt}/{length}/{index}")
        drawn.append([rng.randrange(4, model.vocab_size) for _ in range(length)])
    return drawn
