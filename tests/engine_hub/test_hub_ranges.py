"""Of a hub's model, exactly the span's bytes are fetched, once."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from fetching import (
    EXACT,
    REPO,
    WEIGHTS,
    Waits,
    assert_same,
    blocks,
    bytes_of,
    header_size,
    open_exact,
)
from hub_server import CHUNK_BYTES, HubServer

from swarmd.core.errors import HubError, WeightsError
from swarmd.engine import hub_client
from swarmd.engine.byte_ranges import total
from swarmd.engine.checkpoint import open_checkpoint
from swarmd.engine.hub import open_repo
from swarmd.engine.hub_client import HubClient
from swarmd.engine.hub_settings import HubSettings
from swarmd.engine.partial_file import PartialFile
from swarmd.engine.range_download import FetchPolicy


def test_a_span_costs_the_header_and_its_own_bytes(hub: HubServer, model_dir: Path) -> None:
    checkpoint = open_exact(REPO)
    assert hub.bodies(WEIGHTS) == []  # opening reads no weights

    names = blocks(checkpoint, 2, 4)
    checkpoint.fetch(names)

    header = header_size(model_dir / WEIGHTS)
    ranges = hub.ranges(WEIGHTS)
    assert ranges[:2] == [(0, 8), (8, header)]
    assert sum(end - start for start, end in ranges) == header + bytes_of(checkpoint, names)
    assert hub.sent(WEIGHTS) == header + bytes_of(checkpoint, names)
    assert len(ranges) == 3  # neighbours in the file are asked for at once
    assert_same(checkpoint, names, [model_dir / WEIGHTS])


def test_small_gaps_are_taken_along_and_large_ones_are_not(hub: HubServer, model_dir: Path) -> None:
    checkpoint = open_checkpoint(REPO)
    names = [*blocks(checkpoint, 0, 1), *blocks(checkpoint, 3, 4)]
    names.remove("model.layers.0.post_attention_layernorm.weight")
    checkpoint.fetch(names)

    data = sorted(hub.ranges(WEIGHTS))[2:]
    assert len(data) == 2  # blocks 1 and 2 lie between
    gap = 128 * 2
    assert sum(end - start for start, end in data) == bytes_of(checkpoint, names) + gap
    assert_same(checkpoint, names, [model_dir / WEIGHTS])


def test_a_second_start_fetches_nothing(hub: HubServer, model_dir: Path) -> None:
    first = open_exact(REPO)
    names = blocks(first, 0, 3)
    first.fetch(names)
    hub.forget_requests()

    again = open_exact(REPO)
    assert again.missing_bytes(names) == 0
    again.fetch(names)

    assert hub.bodies(WEIGHTS) == []
    assert [request.path for request in hub.requests if "/resolve/" in request.path] == []
    assert_same(again, names, [model_dir / WEIGHTS])


def test_another_span_fetches_only_what_is_new(hub: HubServer) -> None:
    first = open_exact(REPO)
    first.fetch(blocks(first, 0, 3))
    hub.forget_requests()

    second = open_exact(REPO)
    second.fetch(blocks(second, 2, 5))

    assert hub.sent(WEIGHTS) == bytes_of(second, blocks(second, 3, 5))


def test_the_embedding_is_not_fetched_for_a_middle_span(hub: HubServer) -> None:
    checkpoint = open_exact(REPO)
    checkpoint.fetch(blocks(checkpoint, 2, 3))
    with pytest.raises(WeightsError, match=r"embed_tokens\.weight.*was not fetched"):
        checkpoint.read("model.embed_tokens.weight")


def test_only_the_files_of_the_span_are_touched(hub: HubServer, sharded_dir: Path) -> None:
    hub.add_repo("Org/Sharded", sharded_dir)
    checkpoint = open_exact("Org/Sharded")
    names = blocks(checkpoint, 0, 1)
    checkpoint.fetch(names)

    first, second, third = (f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3))
    assert hub.sent(first) == header_size(sharded_dir / first) + bytes_of(checkpoint, names)
    assert hub.bodies(second) == []
    assert hub.bodies(third) == []

    every = list(checkpoint.tensors())
    checkpoint.fetch(every)
    assert_same(checkpoint, every, [sharded_dir / name for name in (first, second, third)])
    total = sum((sharded_dir / name).stat().st_size for name in (first, second, third))
    assert sum(hub.sent(name) for name in (first, second, third)) == total


def test_large_ranges_go_in_pieces_over_several_connections(
    hub: HubServer, model_dir: Path
) -> None:
    policy = FetchPolicy(gap_bytes=0, piece_bytes=100_000, connections=4, record_bytes=30_000)
    checkpoint = open_repo(REPO, fetch=policy)
    names = list(checkpoint.tensors())
    checkpoint.fetch(names)

    size = (model_dir / WEIGHTS).stat().st_size
    ranges = hub.ranges(WEIGHTS)
    assert max(end - start for start, end in ranges) == 100_000
    assert hub.sent(WEIGHTS) == size
    assert_same(checkpoint, names, [model_dir / WEIGHTS])


def test_a_cut_connection_goes_on_where_it_broke(hub: HubServer, model_dir: Path) -> None:
    checkpoint = open_exact(REPO)
    names = blocks(checkpoint, 1, 3)
    assert checkpoint.missing_bytes(names) == bytes_of(checkpoint, names)
    hub.forget_requests()
    hub.cut("/lfs/", after=70_000, times=2)
    waits = Waits()

    resumed = open_exact(REPO, waits)
    resumed.fetch(names)

    (a, b), (c, d), (e, f) = hub.ranges(WEIGHTS)
    assert (c, e) == (a + 70_000, a + 140_000)
    assert b == d == f
    assert hub.sent(WEIGHTS) == bytes_of(checkpoint, names)
    assert len(waits.seconds) == 2
    assert_same(resumed, names, [model_dir / WEIGHTS])


def test_what_had_arrived_before_giving_up_is_not_fetched_again(
    hub: HubServer, model_dir: Path
) -> None:
    checkpoint = open_exact(REPO, attempts=1)
    names = blocks(checkpoint, 1, 3)
    wanted = bytes_of(checkpoint, names)
    hub.forget_requests()
    hub.cut("/lfs/", after=90_000)
    with pytest.raises(HubError, match="cannot reach"):
        checkpoint.fetch(names)

    again = open_exact(REPO)
    assert again.missing_bytes(names) == wanted - 90_000
    again.fetch(names)

    assert hub.sent(WEIGHTS) == wanted
    assert_same(again, names, [model_dir / WEIGHTS])


def test_what_arrives_is_recorded_as_it_comes(hub: HubServer, home: Path, model_dir: Path) -> None:
    checkpoint = open_repo(REPO, fetch=FetchPolicy(connections=1, record_bytes=100_000))
    names = list(checkpoint.tensors())
    size = (model_dir / WEIGHTS).stat().st_size
    journal = next(home.rglob("*.ranges"))
    blob = PartialFile(journal.with_suffix(""), size)
    header = total(blob.held())
    unrecorded: list[int] = []

    def compare(done: int, total_bytes: int, what: str) -> None:
        unrecorded.append(done + header - total(blob.held()))

    checkpoint.fetch(names, compare)
    assert len(unrecorded) > size / 100_000
    assert max(unrecorded) < 100_000 + CHUNK_BYTES * 2


KILLED = """
import sys
from swarmd.engine.hub import open_repo
from swarmd.engine.hub_client import HubClient
from swarmd.engine.hub_settings import HubSettings
from swarmd.engine.partial_file import PartialFile
from swarmd.engine.range_download import FetchPolicy
checkpoint = open_repo(sys.argv[1], fetch=FetchPolicy(connections=1, record_bytes=50_000))
print("opened", flush=True)
checkpoint.fetch(list(checkpoint.tensors()))
"""


def test_a_killed_process_loses_at_most_what_was_not_recorded(
    hub: HubServer, model_dir: Path
) -> None:
    size = (model_dir / WEIGHTS).stat().st_size
    header = open_exact(REPO)
    header.missing_bytes(list(header.tensors()))
    hub.forget_requests()
    fault, polls = hub.stall("/lfs/", after=1_000_000), threading.Event()
    process = subprocess.Popen([sys.executable, "-c", KILLED, REPO], env=dict(os.environ))
    try:
        assert fault.reached.wait(60)
        # The bytes are on their way; what is recorded shows in the journal, as another sees it.
        while open_exact(REPO).missing_bytes(list(header.tensors())) > size - 900_000:
            assert process.poll() is None
            polls.wait(0.1)
    finally:
        process.kill()
        process.wait()
    hub.forget_requests()

    again = open_exact(REPO)
    again.fetch(list(again.tensors()))

    assert 0 < hub.sent(WEIGHTS) <= size - 900_000
    assert_same(again, again.tensors(), [model_dir / WEIGHTS])


def test_two_that_want_the_same_fetch_it_once(hub: HubServer, model_dir: Path) -> None:
    checkpoints = [open_exact(REPO) for _ in range(2)]
    names = blocks(checkpoints[0], 0, 6)
    fault = hub.stall("/lfs/", after=100_000)
    threads = [threading.Thread(target=c.fetch, args=(names,)) for c in checkpoints]
    # The header is here, so the stalled request is the first for data; the other waits for it.
    for checkpoint in checkpoints:
        checkpoint.missing_bytes(names)
    hub.forget_requests()
    for thread in threads:
        thread.start()
    assert fault.reached.wait(60)
    assert fault.stall is not None
    fault.stall.set()
    for thread in threads:
        thread.join(60)

    assert hub.sent(WEIGHTS) == bytes_of(checkpoints[0], names)
    for checkpoint in checkpoints:
        assert_same(checkpoint, names, [model_dir / WEIGHTS])


def test_progress_counts_every_byte_once(hub: HubServer) -> None:
    checkpoint = open_exact(REPO)
    names = blocks(checkpoint, 0, 2)
    seen: list[tuple[int, int, str]] = []
    checkpoint.fetch(names, lambda *step: seen.append(step))

    total = bytes_of(checkpoint, names)
    told = [done for done, _, _ in seen]  # some of it again where nothing came for a while
    assert told == sorted(told)
    assert len(set(told)) > 3
    assert seen[-1] == (total, total, f"download {REPO}")


def test_an_exception_out_of_progress_ends_the_download_and_keeps_what_came(
    hub: HubServer, model_dir: Path
) -> None:
    checkpoint = open_exact(REPO)
    names = list(checkpoint.tensors())

    def cancel(done: int, total: int, what: str) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.fetch(names, cancel)
    missing = open_exact(REPO).missing_bytes(names)
    assert 0 < missing < (model_dir / WEIGHTS).stat().st_size // 2


def test_a_long_wait_can_be_given_up(hub: HubServer) -> None:
    checkpoint = open_repo(REPO, fetch=EXACT)  # with real waits
    names = blocks(checkpoint, 0, 1)
    checkpoint.missing_bytes(names)
    hub.fail("/lfs/", 429, headers={"Retry-After": "290"})

    def cancel(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.fetch(names, cancel)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("what", "after"), [("header of model.safetensors", 1000), (f"download {REPO}", 300_000)]
)
def test_a_silent_hub_can_be_given_up(
    hub: HubServer, model_dir: Path, monkeypatch: pytest.MonkeyPatch, what: str, after: int
) -> None:
    monkeypatch.setattr(hub_client, "TIMEOUT", httpx.Timeout(None))  # it would wait forever
    seen = [(-1, 0, "")]

    def cancel(*step: Any) -> None:
        # Told again, and that is all that comes: a busy machine may be silent for a while before.
        if step == seen[-1] and (step[0], step[2]) == (after, what):
            raise KeyboardInterrupt
        seen.append(step)

    checkpoint = open_repo(REPO, progress=cancel)
    if "header" in what:
        hub.cut("/lfs/", after=8)  # its length, which comes by a request of its own
    else:
        checkpoint.missing_bytes(checkpoint.tensors())
    hub.stall("/lfs/", after=after)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.fetch(list(checkpoint.tensors()), cancel)
    assert (seen[-1][0], seen[-1][2]) == (after, what)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("download")]

    hub.forget_requests()
    header = 8 if "header" in what else header_size(model_dir / WEIGHTS)
    again = open_exact(REPO)
    again.fetch(list(again.tensors()))
    assert hub.sent(WEIGHTS) == (model_dir / WEIGHTS).stat().st_size - header - after
    assert_same(again, again.tensors(), [model_dir / WEIGHTS])


def test_a_client_that_has_hung_up_connects_anew(hub: HubServer) -> None:
    client = HubClient(REPO, HubSettings.from_environ())
    first = client.repo_info("main")
    client.hang_up()
    assert client.repo_info("main") == first


def test_a_file_that_another_tool_has_downloaded_is_used(hub: HubServer, model_dir: Path) -> None:
    from huggingface_hub import snapshot_download

    settings_home = Path(os.environ["HF_HOME"])
    snapshot_download(REPO, cache_dir=settings_home / "hub", endpoint=hub.endpoint)
    hub.forget_requests()
    checkpoint = open_exact(REPO)
    checkpoint.fetch(list(checkpoint.tensors()))

    assert hub.bodies(WEIGHTS) == []
    assert not (settings_home / "swarmd" / "hashes.json").exists()
    assert checkpoint.digest == open_checkpoint(str(model_dir)).digest
    assert_same(checkpoint, checkpoint.tensors(), [model_dir / WEIGHTS])


def test_weights_outside_large_file_storage_are_read_whole(hub: HubServer, model_dir: Path) -> None:
    hub.add_repo("Org/Plain", model_dir, large="nothing")
    checkpoint = open_exact("Org/Plain")
    checkpoint.fetch(list(checkpoint.tensors()))
    assert_same(checkpoint, checkpoint.tensors(), [model_dir / WEIGHTS])
    assert checkpoint.digest == open_checkpoint(str(model_dir)).digest


def test_a_full_disk_is_noticed_before_anything_is_asked_for(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    checkpoint = open_exact(REPO)
    names = blocks(checkpoint, 0, 2)
    wanted = checkpoint.missing_bytes(names)
    hub.forget_requests()
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=wanted - 1))
    with pytest.raises(HubError, match=f"{wanted} bytes are to be downloaded.*{wanted - 1} free"):
        checkpoint.fetch(names)
    assert hub.requests == []


def test_the_cache_directory_can_be_chosen(hub: HubServer, tmp_path: Path) -> None:
    checkpoint = open_repo(REPO, cache_dir=tmp_path / "elsewhere", fetch=EXACT)
    checkpoint.fetch(blocks(checkpoint, 0, 1))
    blobs = list((tmp_path / "elsewhere").rglob("*.ranges"))
    assert len(blobs) == 1
    assert not (Path(os.environ["HF_HOME"]) / "swarmd").exists()


def test_a_cache_that_cannot_be_written_is_named(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HubError, match=r"file.*HF_HOME"):
        open_repo(REPO, cache_dir=tmp_path / "file")
