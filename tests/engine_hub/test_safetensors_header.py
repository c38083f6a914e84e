"""Whatever a header says, it is read right or refused with `WeightsError` and the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from swarmd.core.errors import WeightsError
from swarmd.engine.safetensors_header import (
    DTYPES,
    MAX_HEADER_BYTES,
    header_bytes,
    parse_header,
)
from swarmd.engine.weights_file import read_header, read_tensor


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def parse(fields: Any, data_bytes: int) -> None:
    raw = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    parse_header(raw, 8 + len(raw) + data_bytes, "w.safetensors")


@pytest.mark.parametrize(
    ("fields", "data_bytes", "message"),
    [
        (b"{not json", 0, "header of 9 bytes is not JSON"),
        (b"\xff\xfe", 0, "not JSON"),
        (b"[" * 100_000, 0, "not JSON"),
        (b'{"a": NaN}', 0, "NaN is not JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", 0, "not JSON"),
        (b'{"a": {}, "a": {}}', 0, "'a' appears twice"),
        ([], 0, "a JSON list, not an object"),
        ({}, 0, "lists no tensors"),
        ({"a": 3}, 8, "'a' is not an object"),
        ({"a": entry("F4")}, 8, "'a' has dtype 'F4'"),
        ({"a": entry(["F32"])}, 8, "dtype"),
        ({"a": entry(shape=(-2,))}, 8, "malformed shape"),
        ({"a": entry(shape=(True, 2))}, 8, "malformed shape"),
        ({"a": entry(shape=(2.0,))}, 8, "malformed shape"),
        ({"a": entry(shape=[1] * 17)}, 8, "malformed shape"),
        ({"a": {**entry(), "shape": None}}, 8, "malformed shape"),
        ({"a": entry(offsets=(8, 0))}, 8, r"malformed offsets \[8, 0\]"),
        ({"a": entry(offsets=(0, 8, 8))}, 8, "malformed offsets"),
        ({"a": entry(shape=(3,))}, 8, "takes 12 bytes as F32.*span 8"),
        ({"a": entry(shape=(1 << 62, 1 << 62))}, 8, "span 8"),
        ({"a": entry(offsets=(4, 12))}, 12, "4 bytes before 'a'"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "'a' and 'b' overlap by 4 bytes"),
        ({"a": entry(), "b": entry(offsets=(0, 8))}, 8, "'a' and 'b' overlap by 8 bytes"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "4 bytes between 'a' and 'b'"),
        ({"a": entry()}, 9, "accounts for .* bytes, the file has"),
    ],
)
def test_a_malformed_header_is_refused(fields: Any, data_bytes: int, message: str) -> None:
    with pytest.raises(WeightsError, match=rf"w\.safetensors.*{message}"):
        parse(fields, data_bytes)


def test_a_truncated_file_is_told_apart_with_both_sizes() -> None:
    raw = json.dumps({"a": entry()}).encode()
    with pytest.raises(
        WeightsError, match=f"truncated: .* {16 + len(raw)} bytes, the file has {15 + len(raw)}"
    ):
        parse(raw, 7)


@pytest.mark.parametrize(
    ("prefix", "size", "message"),
    [
        (b"", 0, "0 bytes is too short"),
        (b"1234567", 7, "7 bytes is too short"),
        ((100).to_bytes(8, "little"), 107, r"header length 100 exceeds the file \(107 bytes\)"),
        (b"\xff" * 8, 1 << 40, "header length 18446744073709551615 exceeds the file"),
        ((1 << 30).to_bytes(8, "little"), 1 << 40, f"1073741824 exceeds {MAX_HEADER_BYTES}"),
    ],
)
def test_an_impossible_length_is_refused_before_it_is_read(
    prefix: bytes, size: int, message: str
) -> None:
    with pytest.raises(WeightsError, match=message):
        header_bytes(prefix, size, "w")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)
DTYPE = st.sampled_from([*DTYPES, "F4", "", "f32"])
SIZES = st.lists(st.integers(-1, 5), max_size=4)
ENTRY = st.fixed_dictionaries(
    {"dtype": DTYPE | SCALARS, "shape": SIZES | SCALARS, "data_offsets": SIZES | SCALARS}
)
HEADERS = st.dictionaries(st.text(max_size=3), ENTRY | SCALARS | st.lists(SCALARS), max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60) | HEADERS.map(lambda h: json.dumps(h).encode()), st.integers(0, 64))
def test_only_weights_errors_come_out(raw: bytes, data_bytes: int) -> None:
    try:
        header = parse_header(raw, 8 + len(raw) + data_bytes, "w")
    except WeightsError:
        return
    for tensor in header.tensors.values():
        assert tensor.end - tensor.start == tensor.meta.nbytes
        assert 8 + len(raw) <= tensor.start <= tensor.end <= 8 + len(raw) + data_bytes


@st.composite
def layouts(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """Headers that are nearly right: tensors end to end, perhaps with one number off by one."""
    fields: dict[str, Any] = {}
    position = 0
    for index in range(draw(st.integers(1, 4))):
        dtype = draw(st.sampled_from(["F32", "BF16", "U8", "I64"]))
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        end = position + math.prod(shape) * DTYPES[dtype].itemsize
        fields[f"t{index}"] = entry(dtype, shape, (position, end))
        position = end
    if draw(st.booleans()):
        victim = fields[draw(st.sampled_from(sorted(fields)))]
        key = draw(st.sampled_from(["shape", "data_offsets"]))
        if victim[key]:
            victim[key][-1] += draw(st.sampled_from([-1, 1]))
    return fields, position + draw(st.sampled_from([0, 0, 0, 1, -1]))


@settings(max_examples=200, deadline=None)
@given(layouts())
def test_it_accepts_what_the_safetensors_library_accepts(
    tmp_path_factory: pytest.TempPathFactory, layout: tuple[dict[str, Any], int]
) -> None:
    fields, data_bytes = layout
    raw = json.dumps(fields).encode()
    path = tmp_path_factory.getbasetemp() / "layout.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0" * max(0, data_bytes))
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
    except SafetensorError:
        with pytest.raises(WeightsError):
            read_header(path, "w")
    else:
        assert set(read_header(path, "w").tensors) == names


@pytest.mark.parametrize(("name", "dtype"), DTYPES.items())
def test_every_dtype_reads_as_the_safetensors_library_reads_it(
    tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    content = torch.arange(24, dtype=torch.uint8) % 2
    tensors = {
        "matrix": content.repeat(dtype.itemsize).view(dtype).reshape(4, 6),
        "scalar": content[: dtype.itemsize].clone().view(dtype).reshape(()),
        "empty": torch.empty(0, 3, dtype=dtype),
    }
    save_file(tensors, tmp_path / "w.safetensors")
    header = read_header(tmp_path / "w.safetensors", "w")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        for key in tensors:
            got = read_tensor(tmp_path / "w.safetensors", header.tensors[key], "w")
            expected = file.get_tensor(key)
            assert file.get_slice(key).get_dtype() == name
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
            assert got.contiguous().view(-1).view(torch.uint8).tolist() == (
                expected.contiguous().view(-1).view(torch.uint8).tolist()
            )
