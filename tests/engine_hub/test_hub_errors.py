"""What the hub refuses, delays or changes becomes a clear error, or only a delay."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from chat_repo import write_chat_repo
from fetching import REPO, WEIGHTS, Waits, assert_same, blocks, bytes_of, open_exact
from hub_server import HubServer

from swarmd.core.errors import HubError, HubRefused, ModelError, UsageError, WeightsError
from swarmd.engine.checkpoint import open_checkpoint
from swarmd.engine.hub_client import HubClient, _redirected
from swarmd.engine.hub_settings import HubSettings

TOKEN = "hf_secret"


def test_without_a_token_a_private_model_says_to_set_one(hub: HubServer) -> None:
    hub.token = TOKEN
    with pytest.raises(HubRefused, match=rf"{REPO} \(401\).*set HF_TOKEN"):
        open_checkpoint(REPO)


def test_a_wrong_token_is_named(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(HubRefused, match="check that the token in HF_TOKEN is valid"):
        open_checkpoint(REPO)


@pytest.mark.parametrize("kept_in", ["environment", "file"])
def test_a_token_opens_it_and_never_leaves_the_hub(
    hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch, kept_in: str
) -> None:
    hub.token = TOKEN
    if kept_in == "environment":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    else:
        home.mkdir()
        (home / "token").write_text(TOKEN + "\n")
    checkpoint = open_checkpoint(REPO)
    checkpoint.fetch(blocks(checkpoint, 0, 1))

    at_cdn = [request for request in hub.requests if request.host == "cdn"]
    assert at_cdn
    for request in hub.requests:
        sent = {name.lower(): value for name, value in request.headers.items()}
        assert ("authorization" in sent) == (request.host == "hub"), request


def test_a_gated_model_says_where_to_accept_its_terms(hub: HubServer) -> None:
    hub.token = TOKEN
    hub.gated.add(REPO)
    with pytest.raises(HubRefused, match=rf"{REPO} is gated: accept its terms at http.*HF_TOKEN"):
        open_checkpoint(REPO)


def test_an_unknown_model_and_revision_are_named(hub: HubServer) -> None:
    with pytest.raises(HubRefused, match=r"refuses access to Org/Nothing.*check the name"):
        open_checkpoint("Org/Nothing")
    with pytest.raises(HubRefused, match="no revision 'v9': check --revision"):
        open_checkpoint(REPO, revision="v9")
    hub.fail("/api/", 404)
    with pytest.raises(HubRefused, match=r"was not found on http.* \(404\): check the name"):
        open_checkpoint(REPO)


@pytest.mark.parametrize("status", [400, 408, 429, 500, 503])
def test_what_may_pass_is_no_mistake_of_the_user(hub: HubServer, status: int) -> None:
    """A service manager starts the node again after these, and not after a mistake."""
    hub.fail("/api/", status, times=99)
    with pytest.raises(HubError, match=str(status)) as failed:
        open_exact(REPO, Waits())
    assert not isinstance(failed.value, UsageError)


def test_only_the_hub_can_say_that_a_model_is_not_there(hub: HubServer) -> None:
    checkpoint = open_exact(REPO)
    hub.fail("/lfs/", 404)
    with pytest.raises(HubError, match="404") as failed:
        checkpoint.fetch(blocks(checkpoint, 0, 1))
    assert not isinstance(failed.value, UsageError)


def test_a_revision_is_honoured(hub: HubServer, tmp_path: Path) -> None:
    other = write_chat_repo(tmp_path / "other", seed=1)
    commit = hub.add_repo(REPO, other, revision="next")
    main, tagged, pinned = (
        open_checkpoint(REPO, revision=revision) for revision in (None, "next", commit)
    )
    assert tagged.commit == pinned.commit == commit != main.commit
    assert tagged.digest == pinned.digest != main.digest
    name = "model.norm.weight"
    tagged.fetch([name])
    assert_same(tagged, [name], [other / WEIGHTS])


def test_the_endpoint_is_the_only_one_that_is_asked(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
    checkpoint = open_checkpoint(REPO)
    checkpoint.fetch(blocks(checkpoint, 0, 1))
    assert {request.host for request in hub.requests} == {"hub", "cdn"}


@pytest.mark.parametrize("part", ["/api/", "/resolve/", "/lfs/"])
@pytest.mark.parametrize("status", [429, 503])
def test_overload_is_waited_out_as_long_as_the_server_asks(
    hub: HubServer, model_dir: Path, part: str, status: int
) -> None:
    waits = Waits()
    if part == "/api/":
        hub.fail(part, status, times=2, headers={"Retry-After": "7"})
    checkpoint = open_exact(REPO, waits)
    if part != "/api/":
        hub.fail(part, status, times=2, headers={"Retry-After": "7"})
    names = blocks(checkpoint, 0, 1)
    checkpoint.fetch(names)

    assert len(waits.seconds) == 2
    assert all(7 <= seconds < 9 for seconds in waits.seconds)
    assert_same(checkpoint, names, [model_dir / WEIGHTS])


def test_a_limit_that_stays_says_when_to_come_back(hub: HubServer) -> None:
    hub.fail("/api/", 429, times=99, headers={"RateLimit": '"api";r=0;t=55'})
    waits = Waits()
    with pytest.raises(HubError, match=r"limits the rate.*again in 55 s, or set HF_TOKEN"):
        open_exact(REPO, waits)
    assert len(waits.seconds) == 2


def test_a_wait_of_hours_is_not_waited_out(hub: HubServer) -> None:
    hub.fail("/api/", 429, headers={"Retry-After": "7200"})
    waits = Waits()
    with pytest.raises(HubError, match="again in 7200 s"):
        open_exact(REPO, waits)
    assert waits.seconds == []


def test_a_mistake_is_not_repeated(hub: HubServer) -> None:
    hub.fail("/api/", 400)
    waits = Waits()
    with pytest.raises(HubError, match="400"):
        open_exact(REPO, waits)
    assert waits.seconds == []


def test_an_address_that_expired_is_asked_for_again(hub: HubServer, model_dir: Path) -> None:
    checkpoint = open_exact(REPO)
    names = blocks(checkpoint, 0, 1)
    checkpoint.missing_bytes(names)
    hub.fail("/lfs/", 403)
    checkpoint.fetch(names)
    addresses = [r.path for r in hub.requests if r.host == "cdn"][-2:]
    assert addresses[0] != addresses[1]
    assert_same(checkpoint, names, [model_dir / WEIGHTS])


def test_offline_uses_what_is_here_and_asks_nobody(
    hub: HubServer, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = open_exact(REPO)
    names = blocks(online, 0, 2)
    online.fetch(names)
    hub.forget_requests()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    offline = open_exact(REPO)
    offline.fetch(names)

    assert hub.requests == []
    assert offline.digest == online.digest
    assert_same(offline, names, [model_dir / WEIGHTS])
    more = blocks(online, 2, 3)
    missing = bytes_of(online, more)
    with pytest.raises(HubError, match=f"{missing} bytes of .*HF_HUB_OFFLINE is set: unset it"):
        offline.fetch(more)


def test_offline_a_missing_tokenizer_is_named_and_not_asked_for(
    hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (open_exact(REPO).files_dir / "tokenizer.json").unlink()
    hub.forget_requests()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=rf"{REPO}/tokenizer\.json: not downloaded"):
        open_exact(REPO)
    assert hub.requests == []


def test_offline_with_nothing_here_says_so(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match=r"revision 'main' was never opened.*HF_HUB_OFFLINE"):
        open_checkpoint(REPO)
    assert hub.requests == []


def test_offline_with_another_tools_snapshot(
    hub: HubServer, home: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import snapshot_download

    snapshot_download(REPO, cache_dir=home / "hub", endpoint=hub.endpoint)
    hub.forget_requests()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    checkpoint = open_exact(REPO)
    checkpoint.fetch(list(checkpoint.tensors()))
    assert hub.requests == []
    assert checkpoint.digest == open_checkpoint(str(model_dir)).digest
    assert_same(checkpoint, checkpoint.tensors(), [model_dir / WEIGHTS])


def test_a_hub_that_is_down_is_replaced_by_what_is_here(hub: HubServer, model_dir: Path) -> None:
    online = open_exact(REPO)
    names = blocks(online, 0, 2)
    online.fetch(names)
    hub.stop()
    again = open_exact(REPO)
    again.fetch(names)
    assert_same(again, names, [model_dir / WEIGHTS])
    with pytest.raises(HubError, match=r"cannot reach http.*HF_ENDPOINT"):
        again.fetch(blocks(again, 2, 3))


def test_a_hub_that_never_answered_is_named(hub: HubServer) -> None:
    hub.stop()
    with pytest.raises(HubError, match="never opened on this machine, and cannot reach http"):
        open_exact(REPO)


@pytest.mark.parametrize(
    "headers", [{"X-Linked-Etag": '"' + "0" * 64 + '"'}, {"X-Repo-Commit": "0" * 40}]
)
def test_a_file_that_changes_under_its_name_is_refused(
    hub: HubServer, headers: dict[str, str]
) -> None:
    checkpoint = open_exact(REPO)
    names = blocks(checkpoint, 0, 1)
    wanted = checkpoint.missing_bytes(names)
    hub.answer_headers = headers
    hub.forget_requests()
    with pytest.raises(HubError, match=r"changed on the hub|answers for 0000"):
        checkpoint.fetch(names)
    assert hub.sent(WEIGHTS) == 0
    assert checkpoint.missing_bytes(names) == wanted


def test_content_that_changes_at_one_address_is_refused(hub: HubServer) -> None:
    checkpoint = open_exact(REPO)
    checkpoint.fetch(blocks(checkpoint, 0, 1))
    hub.content_headers = {"ETag": '"other"'}
    with pytest.raises(HubError, match=r"changed on the hub while it was read: its etag is other"):
        checkpoint.fetch(blocks(checkpoint, 1, 2))


@pytest.mark.parametrize("got", ["bytes 0-7/99", "bytes 8-15/2045824", "nonsense"])
def test_another_range_than_asked_for_is_refused(hub: HubServer, got: str) -> None:
    hub.content_headers = {"Content-Range": got}
    with pytest.raises(HubError, match=rf"for 'bytes 0-7/\d+', it answered 206 with '{got}'"):
        open_exact(REPO).tensors()


def test_more_bytes_than_asked_for_are_refused(hub: HubServer) -> None:
    checkpoint = open_exact(REPO)
    names = blocks(checkpoint, 0, 1)
    wanted = checkpoint.missing_bytes(names)
    hub.padding = b"x" * 100_000
    with pytest.raises(HubError, match=f"sends more than {wanted} bytes of {WEIGHTS}"):
        checkpoint.fetch(names)


def test_an_encoded_answer_is_refused(hub: HubServer) -> None:
    hub.content_headers = {"Content-Encoding": "gzip"}
    with pytest.raises(HubError, match="encoded as gzip: refused"):
        open_exact(REPO).tensors()


def test_a_complete_file_is_held_against_its_hash(hub: HubServer, tmp_path: Path) -> None:
    directory = write_chat_repo(tmp_path / "model", seed=2)
    hub.add_repo("Org/Rotten", directory)
    content = bytearray((directory / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (directory / WEIGHTS).write_bytes(content)
    checkpoint = open_exact("Org/Rotten")
    names = list(checkpoint.tensors())
    with pytest.raises(HubError, match=r"arrived with SHA-256 .* it was dropped"):
        checkpoint.fetch(names)
    assert checkpoint.missing_bytes(names) > 0


def test_a_hub_without_ranges_is_refused(hub: HubServer) -> None:
    hub.honours_ranges = False
    checkpoint = open_exact(REPO)
    with pytest.raises(HubError, match="must support HTTP ranges"):
        checkpoint.fetch(["model.norm.weight"])


def test_a_model_of_pickles_is_refused_before_they_are_read(
    hub: HubServer, model_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    (tmp_path / "m" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    hub.add_repo("Org/Pickled", tmp_path / "m")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin.*only safetensors"):
        open_exact("Org/Pickled")
    assert hub.bodies("pytorch_model.bin") == []


@pytest.mark.parametrize("name", ["../../escape.safetensors", "/etc/escape.safetensors"])
def test_a_file_name_that_leaves_the_repository_is_refused(
    hub: HubServer, sharded_dir: Path, tmp_path: Path, name: str
) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    for path in sharded_dir.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    index["weight_map"]["model.norm.weight"] = name
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    hub.add_repo("Org/Traversal", directory)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight.*escape.*refused"):
        open_exact("Org/Traversal")


def test_a_file_missing_from_the_repository_is_named(
    hub: HubServer, sharded_dir: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    for path in sharded_dir.iterdir():
        if "00002" not in path.name:
            (directory / path.name).write_bytes(path.read_bytes())
    hub.add_repo("Org/Partial", directory)
    with pytest.raises(WeightsError, match=r"lacks 1 of 3 files: model-00002-of-00003"):
        open_exact("Org/Partial")


def test_a_damaged_header_on_the_hub_is_refused(
    hub: HubServer, model_dir: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "m"
    directory.mkdir()
    (directory / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    (directory / WEIGHTS).write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    hub.add_repo("Org/Damaged", directory)
    checkpoint = open_exact("Org/Damaged")
    with pytest.raises(WeightsError, match=rf"Org/Damaged/{WEIGHTS}.*{1 << 40} exceeds"):
        checkpoint.tensors()
    assert hub.sent(WEIGHTS) == 8


INFOS = [
    "[]",
    "{}",
    "nonsense",
    '{"sha": "main", "siblings": []}',
    json.dumps({"sha": "0" * 40, "siblings": [{"rfilename": "../x", "size": 1}]}),
    json.dumps({"sha": "0" * 40, "siblings": [{"rfilename": "a/../../x", "size": 1}]}),
    json.dumps({"sha": "0" * 40, "siblings": [{"rfilename": "x", "size": -1}]}),
    json.dumps({"sha": "0" * 40, "siblings": [{"rfilename": "x", "lfs": {"size": 1}}]}),
    json.dumps(
        {
            "sha": "0" * 40,
            "siblings": [{"rfilename": "x", "lfs": {"size": 1, "sha256": "../" * 21 + "x"}}],
        }
    ),
]


@pytest.mark.parametrize("body", INFOS)
def test_a_description_that_makes_no_sense_is_refused(hub: HubServer, body: str) -> None:
    hub.infos[REPO] = body
    with pytest.raises(HubError):
        open_exact(REPO)
    hub.infos.clear()
    open_exact(REPO)


def test_redirects_are_followed_only_where_it_is_safe(hub: HubServer) -> None:
    with pytest.raises(HubError, match="from https to http: refused"):
        _redirected("https://hub/x", "http://elsewhere/x")
    with pytest.raises(HubError, match="from http to file: refused"):
        _redirected("http://hub/x", "file:///etc/passwd")
    with pytest.raises(HubError, match="redirects to"):
        _redirected("http://hub/x", "http://hub:port/x")
    hub.fail("/api/", 302, times=99, headers={"Location": "/api/again"})
    client = HubClient(REPO, HubSettings.from_environ(os.environ))
    with pytest.raises(HubError, match="more than 5 redirects"):
        client.repo_info("main")
