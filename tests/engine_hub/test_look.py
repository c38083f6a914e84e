"""A look at a model's name tells what is wrong, and does not doubt a hub that is only slow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fetching import REPO, WEIGHTS, open_exact
from hub_server import HubServer

from swarmd.core.errors import HubError, HubRefused, ModelError
from swarmd.engine import look
from swarmd.engine.look import look_for


def test_what_is_there_is_found_and_nothing_of_it_downloaded(
    hub: HubServer, model_dir: Path
) -> None:
    look_for(REPO)
    look_for(str(model_dir))
    assert [request.path for request in hub.requests if "/resolve/" in request.path] == []


def test_a_name_that_the_hub_does_not_know_is_told(hub: HubServer) -> None:
    with pytest.raises(HubRefused, match=r"refuses access to Org/Nothing.*check the name"):
        look_for("Org/Nothing")
    with pytest.raises(HubRefused, match="no revision 'v9': check --revision"):
        look_for(REPO, "v9")


def test_a_repository_without_weights_that_are_read_is_told(hub: HubServer, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "config.json"):
        (tmp_path / name).write_text("{}")
        hub.add_repo("Org/Old", tmp_path)
        complaint = "no config.json" if "bin" in name else "only in pickle files"
        with pytest.raises(ModelError, match=complaint):
            look_for("Org/Old")


def test_where_nobody_answers_only_what_was_opened_before_is_there(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_for(REPO)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    look_for(REPO)
    with pytest.raises(HubError, match=r"Org/Other is no directory here, .* cannot reach http"):
        look_for("Org/Other")


@pytest.mark.parametrize("silent", [True, False])
def test_a_slow_hub_is_left_to_those_with_patience(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    monkeypatch.setattr(look, "HASTY_TIMEOUT_S", 0.1)
    if silent:
        faults = [hub.stall("/api/", after=0) for _ in range(look.HASTY.attempts)]
    else:
        faults = [hub.fail("/api/", 429, headers={"Retry-After": "200"})]
    look_for(REPO)
    assert all(fault.reached.is_set() for fault in faults)
    checkpoint = open_exact(REPO)
    assert checkpoint.tensors()
    assert hub.bodies(WEIGHTS)


def test_a_model_that_cannot_be_split_is_told_by_its_config(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"never read")
    for config, complaint in (
        ({"model_type": "t5", "is_encoder_decoder": True}, "'t5' cannot be split.* decoder-only"),
        ({"model_type": "zamba2"}, "'zamba2' cannot be split into blocks"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ModelError, match=complaint):
            look_for(str(tmp_path))
