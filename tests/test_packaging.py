"""The wheel: what is in it, what it asks for, and that the client part runs on the base install."""

from __future__ import annotations

import email.message
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {"grpcio", "protobuf", "typer", "rich"}
MAX_BYTES = 12_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no leftovers of another build come along and none are left."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(
        ROOT / "swarmd", source / "swarmd", ignore=shutil.ignore_patterns("__pycache__")
    )
    # Without isolation: what it takes is here, and the network need not be.
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    built = subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = out.iterdir()
    return found


def distribution(name: str) -> str:
    """The name of a distribution as it stands at the beginning of a requirement, normalised."""
    found = re.match(r"[A-Za-z0-9._-]+", name)
    assert found, name
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_it_holds_the_package_and_the_demo_model_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = {name for name in names if re.match(r"swarmd-[^/]+\.dist-info/", name)}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "swarmd").rglob("*")
        if path.suffix in (".py", ".pyi", ".typed") or path.parent.name == "demo_model"
        if "__pycache__" not in path.parts
    }
    assert {"swarmd/py.typed", "swarmd/demo_model/model.safetensors"} <= expected
    assert names - info == expected
    assert wheel.stat().st_size < MAX_BYTES


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(archive.read(name))


def test_it_carries_the_licences_of_the_code_and_of_the_demo_model(wheel: Path) -> None:
    about = metadata_of(wheel)
    assert about["License-Expression"] == "Apache-2.0 AND PSF-2.0"
    texts = {
        "LICENSE": "Apache License",
        "swarmd/demo_model/LICENSE": "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2",
    }
    assert set(about.get_all("License-File") or ()) == texts.keys()
    with zipfile.ZipFile(wheel) as archive:
        for file, words in texts.items():
            (name,) = (n for n in archive.namelist() if n.endswith(f".dist-info/licenses/{file}"))
            assert words in archive.read(name).decode()


def test_it_asks_for_little_unless_a_node_is_wanted(wheel: Path) -> None:
    about = metadata_of(wheel)
    needs = about.get_all("Requires-Dist") or []
    assert {distribution(need) for need in needs if "extra ==" not in need} == BASE
    node = {distribution(need) for need in needs if re.search(r"extra == .node.", need)}
    assert {"torch", "transformers", "hivemind", "uvloop"} <= node
    assert about["Requires-Python"] == "<3.14,>=3.11"


# -- installed, with nothing but the base dependencies ---------------------------------------------


def closure(names: set[str]) -> set[str]:
    """The distributions that these need, themselves included."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for other systems or Pythons
            continue
        found.add(name)
        waiting |= {distribution(need) for need in needs if "extra ==" not in need} - found
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine with `pip install swarmd` and nothing else: PYTHONPATH."""
    target, base = tmp_path_factory.mktemp("target"), tmp_path_factory.mktemp("base")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    for name in closure(BASE):
        for file in metadata.files(name) or ():
            top = file.parts[0]
            if top not in ("..", "bin", "__pycache__") and not (base / top).exists():
                (base / top).symlink_to(str(metadata.distribution(name).locate_file(top)))
    home = tmp_path_factory.mktemp("home")
    paths = os.pathsep.join(map(str, (target, base)))
    return {"PYTHONPATH": paths, "HOME": str(home), "PATH": os.environ["PATH"]}


def python(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python without the site-packages of this environment."""
    command = [sys.executable, "-S", *args]
    return subprocess.run(
        command, env=env, cwd=env["HOME"], capture_output=True, text=True, check=False
    )


def swarmd(env: dict[str, str], *args: str) -> subprocess.CompletedProcess[str]:
    return python(env, str(Path(env["PYTHONPATH"].split(os.pathsep)[0]) / "bin/swarmd"), *args)


def test_the_client_runs_on_the_base_install(installed: dict[str, str]) -> None:
    for heavy in ("torch", "numpy", "hivemind", "tokenizers", "uvloop"):
        assert python(installed, "-c", f"import {heavy}").returncode == 1
    where = python(installed, "-c", "import swarmd; print(swarmd.Client, swarmd.__file__)")
    assert where.stdout.startswith("<class 'swarmd.client"), where.stderr
    assert str(ROOT) not in where.stdout
    helped = swarmd(installed, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    for verb in ("serve", "generate", "chat", "status", "drain", "demo", "bench", "version"):
        assert re.search(rf"^  {verb}  +\w", helped.stdout, re.MULTILINE), verb
        assert swarmd(installed, verb, "--help").returncode == 0
    versions = swarmd(installed, "version")
    assert re.match(r"swarmd \S+ \(python \S+, grpcio \S+, protobuf \S+\)", versions.stdout)
    nobody = swarmd(installed, "status", "--node", "127.0.0.1:1")
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert nobody.stderr.startswith("swarmd: nobody answers at 127.0.0.1:1")


def test_what_needs_more_says_what_to_install(installed: dict[str, str]) -> None:
    ports = ("--listen", "127.0.0.1:0", "--dht-listen", "127.0.0.1:0")
    refused = swarmd(installed, "serve", ".", *ports)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "pip install 'swarmd[node]'" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_help_costs_little(installed: dict[str, str]) -> None:
    """Counted in CPU time: how long it takes on a busy machine is the machine's business."""
    script = str(Path(installed["PYTHONPATH"].split(os.pathsep)[0]) / "bin/swarmd")

    def seconds() -> float:
        command = [sys.executable, "-S", script, "--help"]
        process = subprocess.Popen(command, env=installed, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        return usage.ru_utime + usage.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5
