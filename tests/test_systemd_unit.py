"""The unit file fits the daemon: it starts, has time to drain, and may do little else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

from swarmd.cli.serve import serve
from swarmd.core.config import NodeConfig

UNIT = Path(__file__).parents[1] / "systemd" / "swarmd.service"
ANALYZE = shutil.which("systemd-analyze")


@pytest.fixture(scope="module")
def service() -> dict[str, str]:
    parser = ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(UNIT.read_text())
    return dict(parser["Service"])


def test_it_starts_what_there_is(service: dict[str, str]) -> None:
    command, verb, flag, file = service["ExecStart"].split()
    assert (command, verb, file) == ("/usr/local/bin/swarmd", "serve", "/etc/swarmd/node.toml")
    assert flag.removeprefix("--") in serve.__annotations__


def test_there_is_time_to_drain(service: dict[str, str]) -> None:
    allowed = float(service["TimeoutStopSec"].removesuffix("s"))
    assert allowed > NodeConfig(model="m").drain_timeout
    assert service["KillSignal"] == "SIGTERM"


def test_it_is_watched_and_confined(service: dict[str, str]) -> None:
    assert service["Type"] == "notify"
    assert float(service["WatchdogSec"].removesuffix("s")) > 0
    assert service["DynamicUser"] == service["NoNewPrivileges"] == service["ProtectHome"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["CapabilityBoundingSet"] == ""
    assert service["StateDirectory"] == "swarmd"
    assert service["RestartPreventExitStatus"] == "2"


@pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_it(tmp_path: Path) -> None:
    unit = tmp_path / "swarmd.service"
    unit.write_text(UNIT.read_text().replace("/usr/local/bin/swarmd", sys.executable))
    done = subprocess.run(
        [str(ANALYZE), "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
