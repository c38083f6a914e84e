"""The protos are what others read of the wire: everything in them says what it means."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    OneofDescriptorProto,
    ServiceDescriptorProto,
)

PROTOS = Path(__file__).resolve().parents[2] / "protos"

Place = tuple[int, ...]
"""Where something stands in a FileDescriptorProto: numbers of fields and indices, in turns."""


def parsed(root: Path, out: Path) -> FileDescriptorSet:
    """What protoc makes of all protos below `root`, comments included."""
    files = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.proto"))]
    assert files
    compiler = (sys.executable, "-m", "grpc_tools.protoc", f"-I{root}")
    options = ("--include_source_info", f"--descriptor_set_out={out}")
    subprocess.run((*compiler, *options, *files), check=True, timeout=60)
    return FileDescriptorSet.FromString(out.read_bytes())


def uncommented(file: FileDescriptorProto) -> list[str]:
    """Return the full names of what has no comment before it or behind it."""
    said = {
        tuple(location.path)
        for location in file.source_code_info.location
        if location.leading_comments.strip() or location.trailing_comments.strip()
    }
    return [f"{file.package}.{name}" for place, name in _parts(file) if place not in said]


def _parts(file: FileDescriptorProto) -> Iterator[tuple[Place, str]]:
    for index, message in enumerate(file.message_type):
        place = (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, index)
        yield from _message(place, message.name, message)
    for index, enum in enumerate(file.enum_type):
        yield from _enum((FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, index), enum.name, enum)
    for index, service in enumerate(file.service):
        place = (FileDescriptorProto.SERVICE_FIELD_NUMBER, index)
        yield place, service.name
        for number, method in enumerate(service.method):
            within = (ServiceDescriptorProto.METHOD_FIELD_NUMBER, number)
            yield place + within, f"{service.name}.{method.name}"


def _message(place: Place, name: str, message: DescriptorProto) -> Iterator[tuple[Place, str]]:
    if message.options.map_entry:
        return  # made by protoc
    yield place, name
    for index, field in enumerate(message.field):
        yield (*place, DescriptorProto.FIELD_FIELD_NUMBER, index), f"{name}.{field.name}"
    for index, oneof in enumerate(message.oneof_decl):
        if not _is_made_by_protoc(index, oneof, message.field):
            yield (*place, DescriptorProto.ONEOF_DECL_FIELD_NUMBER, index), f"{name}.{oneof.name}"
    for index, nested in enumerate(message.nested_type):
        within = (*place, DescriptorProto.NESTED_TYPE_FIELD_NUMBER, index)
        yield from _message(within, f"{name}.{nested.name}", nested)
    for index, enum in enumerate(message.enum_type):
        within = (*place, DescriptorProto.ENUM_TYPE_FIELD_NUMBER, index)
        yield from _enum(within, f"{name}.{enum.name}", enum)


def _is_made_by_protoc(
    index: int, oneof: OneofDescriptorProto, fields: list[FieldDescriptorProto]
) -> bool:
    """Whether it stands for a field that is `optional`."""
    return any(
        field.proto3_optional and field.oneof_index == index and oneof.name == f"_{field.name}"
        for field in fields
    )


def _enum(place: Place, name: str, enum: EnumDescriptorProto) -> Iterator[tuple[Place, str]]:
    yield place, name
    for index, value in enumerate(enum.value):
        yield (*place, EnumDescriptorProto.VALUE_FIELD_NUMBER, index), f"{name}.{value.name}"


def test_everything_in_the_protos_is_commented(tmp_path: Path) -> None:
    files = parsed(PROTOS, tmp_path / "all").file
    silent = [name for file in files for name in uncommented(file)]
    assert not silent, "no comment in the protos: " + ", ".join(silent)


WHOLE = """syntax = "proto3";
package p;
// M.
message M {
  // a.
  int32 a = 1;
  map<string, int32> b = 2;  // b.
  // c.
  optional int32 c = 3;
  // o.
  oneof o {
    // d.
    int32 d = 4;
    // f.
    bytes f = 5;
  }
  // N.
  message N {}
  // E.
  enum E {
    // Z.
    Z = 0;
  }
}
// S.
service S {
  // R.
  rpc R(M) returns (M);
}
"""


NAMES = {"a": "M.a", "b": "M.b", "c": "M.c", "o": "M.o", "d": "M.d", "f": "M.f", "N": "M.N"}
NAMES |= {"M": "M", "E": "M.E", "Z": "M.E.Z", "S": "S", "R": "S.R"}
"""By comment, what it is the comment of."""


def test_one_comment_that_is_missing_is_missed(tmp_path: Path) -> None:
    for comment in NAMES:
        text = WHOLE.replace("package p", f"package {comment}").replace(f"// {comment}.", "")
        (tmp_path / f"{comment}.proto").write_text(text)
    (tmp_path / "whole.proto").write_text(WHOLE)
    found = {file.package: uncommented(file) for file in parsed(tmp_path, tmp_path / "all").file}
    assert found == {"p": []} | {comment: [f"{comment}.{name}"] for comment, name in NAMES.items()}
