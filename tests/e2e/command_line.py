"""The `swarmd` command as somebody at a terminal has it: a process, its output, its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 240.0
"""For machines under load; nothing takes so long on a quiet one."""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that says what was wrong; fails where there is none, or more than that."""
        assert "Traceback" not in self.err, self.err
        lines = self.err.splitlines()
        said = [line for line in lines if line.startswith("swarmd: ")]
        assert len(said) == 1, self.err
        assert lines[-1] == said[0], self.err
        return said[0].removeprefix("swarmd: ")


def swarmd(*args: str, stdin: str = "", env: Mapping[str, str] | None = None) -> Outcome:
    """Run one command to its end."""
    done = subprocess.run(
        (sys.executable, "-m", "swarmd.cli.main", *args),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env={**os.environ, **(env or {})},
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def serve(
    model: str, state_dir: Path, *flags: str, env: Mapping[str, str] | None = None
) -> Outcome:
    """Run `swarmd serve` where it is expected to fail, on ports that are free."""
    ports = ("--listen", "127.0.0.1:0", "--dht-listen", "127.0.0.1:0")
    return swarmd("serve", model, *ports, "--state-dir", str(state_dir), *flags, env=env)
