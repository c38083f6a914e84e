"""What a figure depends on besides the code: the machine, its load, versions, the commit.

How much of the machine others took in the meantime is `others`'.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import swarmd

PACKAGES = ("torch", "transformers", "grpcio", "protobuf", "hivemind", "uvloop", "numpy")


def circumstances() -> dict[str, object]:
    """Return a JSON object with all of it."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "command": " ".join([_called(Path(sys.argv[0])), *sys.argv[1:]]),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "architecture": platform.machine(),
            "memory_gib": _memory_gib(),
            "system": f"{platform.system()} {platform.release()}",
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"swarmd": swarmd.__version__, "python": platform.python_version()}
        | {name: _version(name) for name in PACKAGES},
    }


def _called(script: Path) -> str:
    """How this command is called: the scripts in bench/ as from the top of the tree."""
    return f"python bench/{script.name}" if script.resolve().parent.name == "bench" else "swarmd"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_gib() -> float:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return round(pages * size / (1 << 30), 1)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the tree that runs, with a plus if files differ; None outside a repository."""
    root = Path(swarmd.__file__).parent
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return None
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", str(root))
    return commit + ("+" if changed else "")


def _git(where: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(where), *words], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
