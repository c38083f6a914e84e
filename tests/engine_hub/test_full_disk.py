"""A disk that becomes full in the middle of a download: named with numbers, and gone on from."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fetching import REPO, WEIGHTS, Waits, assert_same
from hub_server import HubServer

from swarmd.core.errors import HubError
from swarmd.engine.checkpoint import Checkpoint
from swarmd.engine.hub import open_repo
from swarmd.engine.range_download import FetchPolicy

POLICY = FetchPolicy(gap_bytes=0, connections=1, piece_bytes=16 << 10, record_bytes=16 << 10)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 80 MiB: what is asked for before a download fits."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=80m", "swarmd-test", str(place))
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(("umount", "-l", str(place)), check=True)


def fill(file: Path) -> None:
    """Take all the room that is left."""
    with file.open("ab", buffering=0) as sink:
        try:
            while True:
                sink.write(bytes(4096))
        except OSError:
            return


def open_there(disk: Path) -> Checkpoint:
    return open_repo(REPO, cache_dir=disk / "cache", fetch=POLICY, sleep=Waits())


def test_a_disk_that_becomes_full_is_named_and_the_download_goes_on_when_there_is_room(
    hub: HubServer, model_dir: Path, small_disk: Path
) -> None:
    others = small_disk / "others"
    came = 0

    def others_write(done: int, total: int, what: str) -> None:
        nonlocal came
        if done > total // 2 and not others.exists():
            came = done
            fill(others)

    checkpoint = open_there(small_disk)
    names = list(checkpoint.tensors())
    wanted = checkpoint.missing_bytes(names)
    with pytest.raises(HubError, match=r"No space left.* bytes are free; what has arrived is kept"):
        checkpoint.fetch(names, others_write)
    others.unlink()

    hub.forget_requests()
    again = open_there(small_disk)
    left = again.missing_bytes(names)
    assert left < wanted - came // 2, "what had arrived is not fetched again"
    before = hub.sent(WEIGHTS)
    again.fetch(names)
    assert hub.sent(WEIGHTS) - before == left
    assert_same(again, names, [model_dir / WEIGHTS])
