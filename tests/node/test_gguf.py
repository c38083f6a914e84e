"""A Llama as GGUF: read back by the rules of the format, tensor by tensor."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from swarmd.node import gguf
from swarmd.node.witness import make

SHAPE = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 40}
KINDS = {0: torch.float32, 30: torch.bfloat16}


class Reader:
    """Reads a whole file; as much of the format as is written."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0
        magic, version, tensors, pairs = self._take("<4sIQQ")
        assert (magic, version) == (b"GGUF", 3)
        self.pairs = {self._text(): self._value() for _ in range(pairs)}
        entries = [self._entry() for _ in range(tensors)]
        base = -(-self._at // gguf.ALIGNMENT) * gguf.ALIGNMENT
        self.tensors = {name: self._tensor(base + at, *rest) for name, at, *rest in entries}

    def _take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self._data, self._at)
        self._at += struct.calcsize(form)
        return values

    def _text(self) -> str:
        (size,) = self._take("<Q")
        return bytes(self._take(f"{size}s")[0]).decode()

    def _value(self) -> Any:
        (kind,) = self._take("<I")
        return self._text() if kind == 8 else self._take({4: "<I", 6: "<f"}[kind])[0]

    def _entry(self) -> tuple[str, int, torch.dtype, tuple[int, ...]]:
        name, (count,) = self._text(), self._take("<I")
        dims = self._take(f"<{count}Q")
        kind, offset = self._take("<IQ")
        assert offset % gguf.ALIGNMENT == 0
        return name, offset, KINDS[kind], tuple(reversed(dims))

    def _tensor(self, at: int, kind: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        flat = torch.frombuffer(bytearray(self._data), dtype=torch.uint8, offset=at)
        size = torch.Size(shape).numel() * kind.itemsize
        return flat[:size].view(kind).reshape(shape)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_weight_is_there_under_its_name(tmp_path: Path, dtype: str) -> None:
    list(make({"directory": str(tmp_path), "dtype": dtype, "shape": SHAPE}))
    gguf.write(tmp_path, target := tmp_path / "out.gguf")
    read = Reader(target.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    assert read.tensors.keys() == {gguf.renamed(name) for name in weights}
    assert len(read.tensors) == 2 * 9 + 3
    for name, tensor in weights.items():
        found = read.tensors[gguf.renamed(name)]
        assert found.dtype == (torch.float32 if tensor.dim() == 1 else tensor.dtype)
        assert torch.equal(found, tensor.to(found.dtype))
    assert read.pairs["llama.block_count"] == 2
    assert read.pairs["llama.attention.head_count_kv"] == 1
    assert read.pairs["llama.rope.freq_base"] == 10_000.0
    assert read.pairs["tokenizer.ggml.model"] == "no_vocab"


def test_names() -> None:
    assert gguf.renamed("lm_head.weight") == "output.weight"
    assert gguf.renamed("model.layers.11.mlp.up_proj.weight") == "blk.11.ffn_up.weight"
