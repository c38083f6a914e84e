"""A chat model by its hub name on two machines: each downloads its own part, both answer.

The hub is on loopback; the repository has the layout of the 0.5B model in the README, and less of
everything, unless TEST_FULL_SHAPE=1 asks for its real shape: a gigabyte (`make full-shape`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from chat_repo import ChatShape, write_chat_repo
from command_line import PATIENCE_S, Outcome, serve, swarmd
from hub_server import HubServer
from transformers import AutoModelForCausalLM, AutoTokenizer

from swarmd.cli.local_swarm import LocalNode, free_port
from swarmd.client import Client

REPO = "Org/Chat-0.5B-Instruct"
SMALLER = ChatShape(layers=8, hidden=224, heads=7, kv_heads=1, intermediate=608, vocab=2048)
SHAPE = ChatShape() if os.environ.get("TEST_FULL_SHAPE") == "1" else SMALLER
WEIGHTS = "model.safetensors"
HALF = SHAPE.layers // 2
SPANS = (f"0:{HALF}", f"{HALF}:{SHAPE.layers}")
GAP = 16 << 10
"""Bytes between two tensors that are cheaper to take along than a request more."""
MESSAGES = [
    {"role": "system", "content": "Answer in verse."},
    {"role": "user", "content": "What is a swarm?"},
]
TOKENS = 24


@dataclass
class Machine:
    """A node, and a hub that hears of nobody else's requests."""

    hub: HubServer
    node: LocalNode
    args: tuple[str, ...]
    home: Path

    def start(self, **env: str) -> None:
        """Start the node again, with what it has on disk."""
        self.node = start(self.args, self.node.directory, self.hub.environ(self.home) | env)


def start(args: tuple[str, ...], directory: Path, env: dict[str, str]) -> LocalNode:
    return LocalNode(args, directory, {**os.environ, "PYTHONUNBUFFERED": "1", **env})


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_repo(tmp_path_factory.mktemp("repo"), SHAPE)


@pytest.fixture(scope="module")
def machines(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Machine]]:
    """Two nodes that serve the repository by its name, with empty homes."""
    root = tmp_path_factory.mktemp("machines")
    listen = [f"127.0.0.1:{free_port()}" for _ in SPANS]
    flags = ("--dtype", "float32", "--threads", "1", "--kv-memory", "16MiB")
    with ExitStack() as stack:
        found: list[Machine] = []
        for index, span in enumerate(SPANS):
            hub = stack.enter_context(HubServer())
            hub.add_repo(REPO, repo)
            args = (REPO, "--blocks", span, "--listen", listen[index], "--peers", listen[1 - index])
            args += ("--dht-listen", "127.0.0.1:0", *flags)
            home = root / f"home{index}"
            node = start(args, root / f"node{index}", hub.environ(home))
            found.append(Machine(hub, node, args, home))
            stack.callback(lambda machine: machine.node.kill(), found[-1])
        wait_until_whole(found)
        yield found


def wait_until_whole(machines: list[Machine]) -> None:
    """Wait until both nodes serve, and see each other do it."""
    deadline = time.monotonic() + PATIENCE_S
    pids = {machine.node.pid for machine in machines}
    for machine in machines:
        with Client(machine.node.wait_ready(deadline), timeout=30.0) as one:
            while pids != {peer.pid for peer in one.status().peers if peer.state == "serving"}:
                assert time.monotonic() < deadline, "the nodes do not see each other"


@pytest.fixture
def client(machines: list[Machine]) -> Iterator[Client]:
    with Client([machine.node.address for machine in machines], timeout=120.0) as one:
        yield one


def tensor_ranges(path: Path, pattern: str) -> list[tuple[int, int]]:
    """Where the tensors lie whose names match, as bytes of the file."""
    raw = path.read_bytes()
    header_bytes = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + header_bytes])
    base = 8 + header_bytes
    return sorted(
        (base + entry["data_offsets"][0], base + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__" and re.match(pattern, name)
    )


def overlap(a: tuple[int, int], b: tuple[int, int]) -> int:
    return max(0, min(a[1], b[1]) - max(a[0], b[0]))


def test_each_machine_fetches_the_bytes_of_its_own_span(
    machines: list[Machine], repo: Path
) -> None:
    path = repo / WEIGHTS
    # Both need the embedding: the head is tied to it.
    first, second = (
        rf"model\.layers\.({'|'.join(map(str, layers))})\."
        for layers in (range(HALF), range(HALF, SHAPE.layers))
    )
    blocks = (first, rf"{second}|model\.norm")
    for machine, own, others in zip(machines, blocks, blocks[::-1], strict=True):
        asked = machine.hub.ranges(WEIGHTS)
        assert len(machine.hub.bodies(WEIGHTS)) == len(asked), "a body was sent without a range"
        wanted = tensor_ranges(path, rf"{own}|model\.embed_tokens")
        for tensor in wanted:
            assert sum(overlap(tensor, part) for part in asked) == tensor[1] - tensor[0]
        foreign = sum(overlap(t, part) for t in tensor_ranges(path, others) for part in asked)
        assert foreign <= GAP
        header = min(start for start, _ in tensor_ranges(path, ""))
        size = sum(end - start for start, end in wanted)
        assert size + header <= machine.hub.sent(WEIGHTS) <= size + header + foreign
        assert machine.hub.sent(WEIGHTS) < 0.75 * path.stat().st_size


def witness(repo: Path, messages: list[dict[str, str]]) -> tuple[int, ...]:
    """What the whole repository answers in one process."""
    tokenizer = AutoTokenizer.from_pretrained(repo)
    model = AutoModelForCausalLM.from_pretrained(repo, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    ).input_ids
    out = model.generate(
        ids,
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=None,
    )
    return tuple(out[0, ids.shape[1] :].tolist())


def test_a_chat_over_both_gives_what_the_whole_model_does(client: Client, repo: Path) -> None:
    answer = client.chat(MESSAGES, max_tokens=TOKENS, ignore_eos=True)
    expected = witness(repo, MESSAGES)
    assert answer.token_ids == expected
    assert len(set(expected)) > 6, "a model that says one thing proves nothing"
    assert [str(hop.blocks) for hop in answer.route] == list(SPANS)
    assert answer.model == REPO
    tokenizer = AutoTokenizer.from_pretrained(repo)
    assert client.tokenize(MESSAGES) == list(
        tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
    )


def test_the_chat_verb_keeps_the_conversation(client: Client, machines: list[Machine]) -> None:
    flags = ("--temperature", "0", "--max-tokens", "8", "--system", "Answer in verse.")
    node = ("--node", machines[1].node.address)
    talked = swarmd("chat", *flags, *node, "--json", stdin="hello\nand then?\n")
    assert talked.code == 0, talked.err
    first, second = map(json.loads, talked.out.splitlines())
    history = [MESSAGES[0], {"role": "user", "content": "hello"}]
    assert client.chat(history, max_tokens=8).text == first["text"]
    history += [
        {"role": "assistant", "content": first["text"]},
        {"role": "user", "content": "and then?"},
    ]
    assert client.chat(history, max_tokens=8).token_ids == tuple(second["token_ids"])
    plain = swarmd("chat", *flags, *node, stdin="hello\n/reset\nhello\n/quit\nnever read\n")
    assert plain.out == f"{first['text']}\n{first['text']}\n"


def test_a_second_start_fetches_no_weights_and_a_third_no_hub(
    machines: list[Machine], repo: Path
) -> None:
    for machine in machines:
        assert machine.node.stop(timeout=60.0) == 0
        machine.hub.forget_requests()
    machines[0].start()
    machines[1].start(HF_HUB_OFFLINE="1")
    wait_until_whole(machines)
    assert machines[0].hub.requests, "nobody has looked whether there is a new commit"
    assert machines[0].hub.bodies(WEIGHTS) == []
    assert machines[1].hub.requests == []
    with Client([machine.node.address for machine in machines], timeout=120.0) as client:
        answer = client.chat(MESSAGES, max_tokens=TOKENS, ignore_eos=True)
    assert answer.token_ids == witness(repo, MESSAGES)


# -- what goes wrong with hubs ---------------------------------------------------------------------


def test_models_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps({"model_type": "t5", "num_layers": 4}))
    (encoder / WEIGHTS).write_bytes(b"never read" * 1000)
    with HubServer() as hub, ThreadPoolExecutor(2) as pool:
        hub.add_repo("Org/Encoder", encoder)
        hub.add_repo("Org/Private", encoder)

        def attempt(name: str, **env: str) -> Outcome:
            home = tmp_path / f"home-{name.replace('/', '-')}"
            return serve(name, home / "state", env=hub.environ(home) | env)

        absent = pool.submit(attempt, "Org/None-Such")
        unsplittable = pool.submit(attempt, "Org/Encoder")
        offline = pool.submit(attempt, "Org/Private", HF_HUB_OFFLINE="1")
        assert absent.result().code == 2
        assert "there is no such model, or it is private" in absent.result().error
        assert unsplittable.result().code == 2
        assert "'t5'" in unsplittable.result().error
        assert offline.result().code == 1
        assert "was never opened on this machine, and HF_HUB_OFFLINE" in offline.result().error
        assert hub.bodies(WEIGHTS) == []


SILENCES = {"config": "/resolve/", "header": "/lfs/", "weights": "/lfs/"}
"""What the hub falls silent over -> what the request for it contains."""


@contextmanager
def waiting_for_a_hub(repo: Path, root: Path, what: str) -> Iterator[LocalNode]:
    """A node whose hub is silent, and would be believed in for 30 s or more."""
    with HubServer() as hub:
        hub.add_repo(REPO, repo)
        if what == "weights":
            # Harmless faults of the requests before: the header's length, and the header.
            hub.cut("/lfs/", after=1 << 30, times=2)
        fault = hub.stall(SILENCES[what], after=0)
        args = (
            REPO,
            "--blocks",
            SPANS[0],
            "--listen",
            "127.0.0.1:0",
            "--dht-listen",
            "127.0.0.1:0",
        )
        env = {"HF_HUB_DOWNLOAD_TIMEOUT": "120"}
        node = start(args, root / "node", hub.environ(root / "home") | env)
        try:
            assert fault.reached.wait(PATIENCE_S)
            yield node
        finally:
            node.kill()


def test_a_signal_ends_a_node_that_waits_for_the_hub(repo: Path, tmp_path: Path) -> None:
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        waiting = [
            pool.submit(stack.enter_context, waiting_for_a_hub(repo, tmp_path / what, what))
            for what in ("config", "weights")
        ]
        for node in [started.result() for started in waiting]:
            node.signal(signal.SIGTERM)
            assert node.process.wait(15.0) == 0
            last = node.log().splitlines()[-1]
            assert last.endswith(
                "stopped while loading; what was downloaded is kept for the next start"
            )
            assert "Traceback" not in node.log()


def test_a_second_signal_ends_a_node_that_cannot_leave(repo: Path, tmp_path: Path) -> None:
    with waiting_for_a_hub(repo, tmp_path, "header") as node:
        directory = psutil.Process(node.pid).children()
        assert len(directory) == 1
        directory[0].suspend()  # it is to take the news that the node leaves
        try:
            node.signal(signal.SIGTERM)
            wait_for_log(node, "draining")
            node.signal(signal.SIGTERM)
            assert node.process.wait(15.0) == 1
        finally:
            directory[0].kill()
        assert node.log().splitlines()[-1].endswith("ended by a signal while leaving")


def wait_for_log(node: LocalNode, text: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while text not in node.log():
        assert node.alive, node.log()
        assert time.monotonic() < deadline, node.log()
        time.sleep(0.05)
