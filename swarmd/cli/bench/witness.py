"""Runs `swarmd.node.witness` in a process of its own, so that its threads and memory are its own.

What it computes there is not known here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from swarmd.core.errors import SwarmdError


def witness(
    command: str, request: Mapping[str, Any], timeout_s: float | None = None
) -> list[dict[str, Any]]:
    """Return its answers, one object per line; the last is `{"error": ...}` if it came too late.

    Raises SwarmdError with the end of what it said when it fails.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", "swarmd.node.witness", command],
            env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
            input=json.dumps(request).encode(),
            capture_output=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as late:
        return [*_answers(late.stdout or b""), {"error": f"not done within {timeout_s:.0f} s"}]
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise SwarmdError(f"{command} failed: {said[-1][-300:] if said else 'without a word'}")
    return _answers(done.stdout)


def _answers(out: bytes) -> list[dict[str, Any]]:
    """The lines that are objects: libraries print to stdout as well."""
    lines = out.decode(errors="replace").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
