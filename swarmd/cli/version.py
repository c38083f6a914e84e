"""`swarmd version`: what is installed, for bug reports."""

from __future__ import annotations

import platform

import swarmd
from swarmd.cli import console

PARTS = ("grpcio", "protobuf", "torch", "transformers", "hivemind")


@console.verb
def version(as_json: console.JsonOption = False) -> int | None:
    """Print the version, and those of what it runs on."""
    parts = {"python": platform.python_version()} | {
        part: found for part in PARTS if (found := _installed(part))
    }
    if as_json:
        console.print_json({"swarmd": swarmd.__version__} | parts)
    else:
        listed = ", ".join(f"{name} {number}" for name, number in parts.items())
        print(f"swarmd {swarmd.__version__} ({listed})")
    return None


def _installed(package: str) -> str:
    from importlib import metadata  # a tenth of what `swarmd --help` may take

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
