"""Two models under one name in one swarm: a request gets the one that is meant, or is told."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from chat_repo import write_chat_repo
from command_line import PATIENCE_S, swarmd
from forked import forked

from swarmd.cli.local_swarm import LocalNode, LocalSwarm
from swarmd.client import Client, ResumePolicy
from swarmd.core.errors import AmbiguousModel, PeerUnreachable, UnknownModel

NAME = "twin"
PROMPT = [5, 6, 7, 8]
TOKENS = 12


@dataclass
class Twin:
    """A node that serves a whole model under the name, and what that model says."""

    node: LocalNode
    digest: str
    ids: tuple[int, ...]


@pytest.fixture(scope="module")
def twins(swarm: LocalSwarm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Twin]]:
    root = tmp_path_factory.mktemp("twins")
    ports = ("--listen", "127.0.0.1:0", "--dht-listen", "127.0.0.1:0", "--lease", "5")
    flags = ("--dtype", "float32", "--threads", "1", "--kv-memory", "16MiB", "--blocks", ":")
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    models = [write_chat_repo(root / f"model{seed}", seed=seed) for seed in range(2)]
    named = ("--served-model-name", NAME, "--peers", swarm.addresses[0])
    where = {f"node-of-{model.name}": (str(model), *named, *ports, *flags) for model in models}
    nodes = [LocalNode(args, root / name, env, launch=forked) for name, args in where.items()]
    try:
        for node in nodes:
            node.wait_ready(time.monotonic() + PATIENCE_S)
        wait_for_twins(swarm.addresses[0], 2)
        yield [meet(node) for node in nodes]
    finally:
        for node in nodes:
            node.kill()


def meet(node: LocalNode) -> Twin:
    """Ask a node for the name that it serves itself: it means its own model."""
    with Client(node.address, timeout=120.0) as door:
        done = door.complete(PROMPT, model=NAME, max_tokens=TOKENS, ignore_eos=True)
        assert [hop.pid for hop in done.route] == [node.pid]
        assert done.model == NAME
        return Twin(node, digests(door)[node.pid], done.token_ids)


def digests(door: Client) -> dict[int, str]:
    """Digest of the model that each node serves under the name, by process id."""
    return {peer.pid: peer.model_digest for peer in door.status().peers if peer.model == NAME}


def wait_for_twins(address: str, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    with Client(address, timeout=30.0) as door:
        while [model.name for model in door.status().models].count(NAME) != count:
            assert time.monotonic() < deadline


def test_each_node_serves_its_own_under_the_name(twins: list[Twin]) -> None:
    one, other = twins
    assert one.digest != other.digest
    assert one.ids != other.ids


def test_status_tells_them_apart(swarm: LocalSwarm, twins: list[Twin]) -> None:
    shown = swarmd("status", "--node", swarm.addresses[0]).out
    for twin in twins:
        label = f"{NAME}@{twin.digest[:12]}"
        assert f"\n{label}: 6 of 6 blocks, replicas 1" in shown
        assert re.search(rf"{twin.node.address} +{label} +0:6 +serving", shown)
    assert "\ndemo_model: 8 of 8 blocks" in shown


def test_a_node_that_serves_neither_names_both(swarm: LocalSwarm, twins: list[Twin]) -> None:
    refused = swarmd("generate", "--ids", "5,6", "--model", NAME, "--node", swarm.addresses[0])
    assert refused.code == 2
    assert f"'{NAME}' stands for 2 models here: ask for" in refused.error
    for twin in twins:
        assert f"{NAME}@{twin.digest[:12]}" in refused.error


def test_a_name_with_a_digest_leads_from_any_node_to_the_one_that_is_meant(
    swarm: LocalSwarm, twins: list[Twin]
) -> None:
    doors = [swarm.addresses[0], *(twin.node.address for twin in twins)]
    for address in doors:
        with Client(address, timeout=120.0) as door:
            for twin in twins:
                for asked in (f"{NAME}@{twin.digest[:8]}", twin.digest):
                    done = door.complete(PROMPT, model=asked, max_tokens=TOKENS, ignore_eos=True)
                    assert [hop.pid for hop in done.route] == [twin.node.pid]
                    assert done.token_ids == twin.ids


def test_a_lost_generation_does_not_go_on_with_other_weights(
    swarm: LocalSwarm, twins: list[Twin]
) -> None:
    """The last test of these nodes: one of them is gone then."""
    one, other = twins
    impatient = ResumePolicy(budget_s=3.0)
    addresses = [one.node.address, other.node.address]
    with Client(addresses, timeout=120.0, resume=impatient) as client:
        with pytest.raises(AmbiguousModel), Client(swarm.addresses[0], timeout=30.0) as door:
            door.complete(PROMPT, model=NAME)
        tokens = client.generate(PROMPT, max_tokens=3000, ignore_eos=True)
        assert [next(tokens).id for _ in range(5)] == list(one.ids[:5])
        one.node.kill()
        with pytest.raises((UnknownModel, PeerUnreachable)):
            list(tokens)
        assert tokens.resumes == 0
    # Its lease ends, and the name stands for one model again.
    wait_for_twins(swarm.addresses[0], 1)
    with Client(swarm.addresses[0], timeout=120.0) as door:
        done = door.complete(PROMPT, model=NAME, max_tokens=TOKENS, ignore_eos=True)
    assert done.token_ids == other.ids
