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

from swarmd.core.errors import DeadlineExceeded, SwarmdError


def witness(
    command: str, request: Mapping[str, Any], timeout_s: float | None = None
) -> dict[str, Any]:
    """Return its answer. Raises DeadlineExceeded, or SwarmdError with the end of what it said."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "swarmd.node.witness", command],
            env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise DeadlineExceeded(f"not done within the {timeout_s:.0f} s left") from None
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise SwarmdError(f"{command} failed: {said[-1][-300:] if said else 'without a word'}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer
