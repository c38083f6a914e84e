"""What the documentation names is there: files, anchors, rooms, flags, variables, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import grpc
import pytest
from test_architecture import MAY_IMPORT, PACKAGE
from typer.main import get_command

import swarmd
from swarmd.cli.main import app
from swarmd.core import errors
from swarmd.core.config import KEYS, OTHER_VARIABLES, env_name
from swarmd.core.frames import Refusal

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()
HUB_SETTINGS = (PACKAGE / "engine" / "hub_settings.py").read_text()
OTHERS_FLAGS = {"--index-url", "--strict"}
"""Of pip and mypy."""


def named(pattern: str) -> set[str]:
    return {name for page in PAGES for name in re.findall(pattern, page.read_text())}


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as hosts of repositories make it."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_architecture_is_one_page() -> None:
    assert len(ARCHITECTURE.splitlines()) <= 80
    assert len(ARCHITECTURE.split()) <= 900


def test_the_architecture_shows_the_rooms_and_what_they_import() -> None:
    rows = re.findall(r"^\| `(\w+)/` \|.*\| ([\w, -]+) \|$", ARCHITECTURE, re.MULTILINE)
    shown = {room: set(imports.split(", ")) - {"-"} for room, imports in rows}
    assert shown == {room: may for room, may in MAY_IMPORT.items() if (PACKAGE / room).is_dir()}


def test_files_of_the_package_are_there() -> None:
    for name in named(r"`((?:bench|configs|examples|swarmd|tests)/[\w./-]+)`"):
        assert (ROOT / name).exists(), name


def test_flags_are_those_of_the_command_line() -> None:
    verbs = get_command(app).commands.values()  # type: ignore[attr-defined]
    options = [option for verb in verbs for option in verb.params]
    known = {flag for option in options for flag in (*option.opts, *option.secondary_opts)}
    # click adds --help itself.
    assert named(r"(?<![\w-])--[a-z][a-z-]+") <= known | OTHERS_FLAGS | {"--help"}


def test_variables_are_read() -> None:
    assert named(r"\bSWARMD_[A-Z_]+") <= {*map(env_name, KEYS), *OTHER_VARIABLES}
    hubs = named(r"\bHF_[A-Z_]+")
    assert hubs
    assert all(f'"{name}"' in HUB_SETTINGS for name in hubs)


def test_errors_and_codes_exist() -> None:
    known = {*vars(errors), *swarmd.__all__}
    assert named(r"`(?:swarmd\.)?([A-Z][a-z]+[A-Z][a-z]\w+)`") <= known
    codes = {*Refusal.__members__, *grpc.StatusCode.__members__}
    capitals = named(r"`([A-Z]+_[A-Z_]+)`")
    assert {name for name in capitals if not name.startswith(("HF_", "SWARMD_"))} <= codes


def test_results_name_no_place_of_one_machine() -> None:
    for result in (ROOT / "bench" / "results").glob("*.json"):
        found = json.loads(result.read_text())
        command = found.get("command", "") if isinstance(found, dict) else ""
        assert not re.search(r"(?<![\w.])/\w", command), result.name
