"""Holds the table of rooms: who imports whom, what stays unloaded, what the protos generate."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "swarmd"

MAY_IMPORT = {
    "core": set(),
    "wire": {"core"},
    "swarm": {"core", "wire"},
    "engine": {"core"},
    "text": {"core"},
    "pipeline": {"core", "swarm"},
    "client": {"core", "wire"},
    "node": {"core", "wire", "swarm", "engine", "text", "pipeline"},
    "cli": {"core", "client", "node"},
    "sim": {"core", "wire", "engine", "swarm", "pipeline", "client", "node", "toys"},
}
"""Generated code (`swarmd.v1`) and the package's own door are open to all."""

TORCH_ROOMS = {"engine", "node"}
PURE_ROOMS = {"pipeline": {"asyncio", "socket", "time", "random", "threading", "grpc", "torch"}}
HIVEMIND_FILES = {"swarmd/swarm/dht_child.py"}
MAX_LINES = 450


def modules() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if "v1" not in path.parts and "demo_model" not in path.parts
    ]


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Return (dotted name, whether at module level) for every import in a file."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module or "", id(node) in top))
    return found


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def test_rooms_import_only_what_the_table_allows() -> None:
    wrong = []
    for path in modules():
        room = room_of(path)
        if not room:
            continue
        allowed = MAY_IMPORT[room] | {room, "v1"}
        for name, _ in imports_of(path):
            parts = name.split(".")
            if parts[0] == "swarmd" and len(parts) > 1 and parts[1] not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_the_table_names_the_rooms_that_there_are() -> None:
    assert MAY_IMPORT.keys() == {room_of(path) for path in modules()} - {""}


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that importing a module runs: neither functions nor what is for types only."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from run_at_import(node.orelse)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.ClassDef):
            inner = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.stmt)]
            inner += [part for h in getattr(node, "handlers", ()) for part in h.body]
            yield from run_at_import(inner)


def needed_by(text: str, known: Set[str]) -> set[str]:
    """Which of the known modules must have been imported for this one to be.

    `from package import name` needs the package only if the name is no module of it: by the time
    a module is imported, its packages are being imported already, and that does no harm. (So
    `swarmd.client` may import `async_client`, which takes `values` from it.)
    """
    found: set[str] = set()
    for node in run_at_import(ast.parse(text).body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module or ""
            inside = {f"{package}.{alias.name}" for alias in node.names}
            found |= {name if name in known else package for name in inside}
    return found & known


def cycle_in(sources: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a ring, the first one once more at the end; or none."""
    try:
        TopologicalSorter(
            {name: needed_by(text, sources.keys()) for name, text in sources.items()}
        ).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_modules_do_not_import_each_other_in_rings() -> None:
    def name(path: Path) -> str:
        return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    ring = cycle_in({name(path): path.read_text() for path in modules()})
    assert not ring, " > ".join(ring)


def test_a_ring_is_found_where_there_is_one() -> None:
    ring = {"p": "", "p.a": "from p import b", "p.b": "try:\n import p.c\nexcept E: pass"}
    assert set(cycle_in(ring | {"p.c": "from p.a import x"})) == {"p.a", "p.b", "p.c"}
    lazy = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n from p.a import x\n"
    assert cycle_in(ring | {"p.c": f"{lazy}def f():\n import p.a"}) == []
    assert cycle_in({"p": "from p.a import x", "p.a": "from p import b", "p.b": ""}) == []
    both = {"p": "from p.a import x", "p.a": "from p import b, x", "p.b": ""}
    assert set(cycle_in(both)) == {"p", "p.a"}


def test_the_command_line_reaches_for_the_node_only_inside_a_verb() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules()
        if room_of(path) == "cli"
        for name, top in imports_of(path)
        if top and name.startswith("swarmd.node")
    ]
    assert not wrong, wrong


def test_nobody_but_the_shipped_fakes_imports_them() -> None:
    fakes = {"swarmd.testing", "swarmd.toys", "swarmd.simulation", "swarmd.lossy_links"}
    users = [
        str(path)
        for path in modules()
        if room_of(path) not in ("", "sim")
        for name, _ in imports_of(path)
        if name in fakes or name.startswith("swarmd.sim.")
    ]
    assert not users


def test_heavy_libraries_stay_in_their_rooms() -> None:
    wrong = []
    for path in modules():
        relative, room = path.relative_to(ROOT).as_posix(), room_of(path)
        for name, _ in imports_of(path):
            library = name.split(".")[0]
            if library in {"torch", "transformers"} and room not in TORCH_ROOMS:
                wrong.append(f"{relative}: {name}")
            if library == "hivemind" and relative not in HIVEMIND_FILES:
                wrong.append(f"{relative}: {name}")
            if library in PURE_ROOMS.get(room, ()):
                wrong.append(f"{relative}: {name} in a pure room")
            if library in {"pickle", "cloudpickle", "dill", "marshal", "shelve"}:
                wrong.append(f"{relative}: {name} runs what strangers send")
    assert not wrong, "\n".join(wrong)


def test_nothing_unpickles() -> None:
    for path in modules():
        text = path.read_text()
        assert "torch.load(" not in text, path
        assert "trust_remote_code=True" not in text, path


@pytest.mark.parametrize(
    "module",
    ["swarmd", "swarmd.client", "swarmd.cli.main", "swarmd.pipeline.driver", "swarmd.swarm.dht"],
)
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = (
        f"import {module}, sys; "
        "heavy = {'torch', 'hivemind', 'transformers'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_files_stay_readable() -> None:
    long = {
        path.relative_to(ROOT).as_posix(): count
        for path in modules()
        if (count := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long, f"over {MAX_LINES} lines: {long}"


def test_generated_code_is_what_the_protos_give(tmp_path: Path) -> None:
    protos = sorted((ROOT / "protos/swarmd/v1").glob("*.proto"))
    assert protos
    done = subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "protos")),
            *(f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")),
            *map(str, protos),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    fresh = {p.name: p.read_text() for p in (tmp_path / "swarmd/v1").iterdir() if p.is_file()}
    for name, text in fresh.items():
        assert (PACKAGE / "v1" / name).read_text() == text, f"run `make protos`: {name} is stale"
