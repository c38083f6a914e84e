"""The header of one safetensors file, checked: which tensor lies at which bytes.

Pure functions over bytes; opening files and fetching ranges is `checkpoint` and `hub`'s business.

The format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length
N, N bytes of JSON, then the data. A header comes from strangers, so whatever is wrong with it, the
only exception that leaves this module is `WeightsError`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn, TypeGuard

import torch

from swarmd.core.errors import WeightsError
from swarmd.engine.source import TensorMeta

PREFIX_BYTES = 8
# The limit of huggingface_hub as well. The largest headers in use (90,000 tensors in one file)
# take about 14 MB; parsing costs some 20 times the size in memory, so the bound is also ours.
MAX_HEADER_BYTES = 25_000_000
MAX_DIMS = 16

DTYPES: Mapping[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies: bytes `[start, end)` of the file, header included."""

    meta: TensorMeta
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """All tensors of one file. `data_start` is the length of prefix and header together."""

    tensors: Mapping[str, TensorEntry]
    data_start: int


def header_bytes(prefix: bytes, file_size: int, where: str) -> int:
    """Length of the JSON header, from the file's first 8 bytes and its size in bytes."""
    if file_size < PREFIX_BYTES or len(prefix) < PREFIX_BYTES:
        raise WeightsError(
            f"{where}: {file_size} bytes is too short for a safetensors file, "
            f"which begins with {PREFIX_BYTES} bytes of header length"
        )
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if length > file_size - PREFIX_BYTES:
        raise WeightsError(
            f"{where}: header length {length} exceeds the file ({file_size} bytes): "
            "the file is truncated, or not a safetensors file"
        )
    if length > MAX_HEADER_BYTES:
        raise WeightsError(f"{where}: header length {length} exceeds {MAX_HEADER_BYTES} bytes")
    return length


def parse_header(raw: bytes, file_size: int, where: str) -> Header:
    """Check the JSON header `raw` (without its 8-byte prefix) of a file of `file_size` bytes.

    Names, dtypes and shapes must be well-formed, every tensor as long as its shape says, and the
    tensors must fill the data section without gap or overlap. `where` names the file in errors.
    """
    fields = _decode(raw, where)
    fields.pop("__metadata__", None)
    data_start = PREFIX_BYTES + len(raw)
    tensors = {name: _entry(name, value, data_start, where) for name, value in fields.items()}
    _check_layout(tensors, data_start, file_size, where)
    return Header(tensors, data_start)


def _decode(raw: bytes, where: str) -> dict[str, Any]:
    try:
        fields = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{where}: header of {len(raw)} bytes is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise WeightsError(f"{where}: header is a JSON {type(fields).__name__}, not an object")
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"{_short(name)} appears twice")
        fields[name] = value
    return fields


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _entry(name: str, value: Any, data_start: int, where: str) -> TensorEntry:
    if not isinstance(value, dict):
        raise WeightsError(f"{where}: entry of tensor {name!r} is not an object")
    dtype = value.get("dtype")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise WeightsError(f"{where}: tensor {name!r} has dtype {dtype!r}; known: {list(DTYPES)}")
    shape, offsets = value.get("shape"), value.get("data_offsets")
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise WeightsError(f"{where}: tensor {name!r} has a malformed shape {_short(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise WeightsError(f"{where}: tensor {name!r} has malformed offsets {_short(offsets)}")
    begin, end = offsets
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != nbytes:
        raise WeightsError(
            f"{where}: tensor {name!r} takes {nbytes} bytes as {dtype} {_short(shape)}, "
            f"but its offsets span {end - begin}"
        )
    meta = TensorMeta(DTYPES[dtype], tuple(shape), nbytes)
    return TensorEntry(meta, data_start + begin, data_start + end)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    # `type(x) is int`: JSON true and false are ints to isinstance. The bound keeps products small.
    return isinstance(value, list) and all(type(x) is int and 0 <= x < 1 << 63 for x in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _check_layout(
    tensors: Mapping[str, TensorEntry], data_start: int, file_size: int, where: str
) -> None:
    if not tensors:
        raise WeightsError(f"{where}: the header lists no tensors")
    order = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end))
    first_name, first = order[0]
    if first.start != data_start:
        raise WeightsError(
            f"{where}: {first.start - data_start} bytes before {first_name!r} belong to no tensor"
        )
    for (name, entry), (next_name, following) in pairwise(order):
        if entry.end > following.start:
            raise WeightsError(
                f"{where}: tensors {name!r} and {next_name!r} overlap "
                f"by {entry.end - following.start} bytes"
            )
        if entry.end < following.start:
            raise WeightsError(
                f"{where}: {following.start - entry.end} bytes between {name!r} and "
                f"{next_name!r} belong to no tensor"
            )
    expected = order[-1][1].end
    if expected > file_size:
        raise WeightsError(
            f"{where}: truncated: the header accounts for {expected} bytes, "
            f"the file has {file_size}; copy or download it again"
        )
    if expected < file_size:
        raise WeightsError(
            f"{where}: the header accounts for {expected} bytes, the file has {file_size}"
        )
