"""What strangers do to a swarm: each mistake is named in one line, and nobody else notices."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from chat_repo import write_chat_repo
from command_line import PATIENCE_S, Outcome, serve, swarmd

from swarmd.cli.local_swarm import LocalNode, LocalSwarm
from swarmd.client import Client
from swarmd.core.errors import (
    PromptTooLong,
    RequestError,
    UnknownModel,
)
from swarmd.core.results import Completion
from swarmd.v1 import inference_pb2, inference_pb2_grpc

PROMPT = "def fibonacci(n):"
TOKENS = 60
OTHER = "other-model"
KV_TOKENS = 128
"""What the KV budget of the node of the other model holds."""


# -- a node that cannot start ----------------------------------------------------------------------


def directory(model_dir: Path, where: Path, *, leave_out: str = "") -> Path:
    """Copy a model, less one file."""
    where.mkdir()
    for file in model_dir.iterdir():
        if file.is_file() and file.name != leave_out:
            shutil.copy(file, where / file.name)
    return where


def unsplittable(model_dir: Path, where: Path) -> Path:
    """A family whose decoder's blocks all need the encoder; its weights cannot even be read."""
    where.mkdir()
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "num_layers": 4}
    (where / "config.json").write_text(json.dumps(config))
    (where / "model.safetensors").write_bytes(b"no weights")
    return where


def without_shard(model_dir: Path, where: Path) -> Path:
    write_chat_repo(where, shards=3)
    (where / "model-00002-of-00003.safetensors").unlink()
    return where


def corrupt_header(model_dir: Path, where: Path) -> Path:
    directory(model_dir, where)
    with (where / "model.safetensors").open("r+b") as file:
        file.seek(20)
        file.write(b"\0\xff\0\xff")
    return where


def truncated(model_dir: Path, where: Path) -> Path:
    directory(model_dir, where)
    with (where / "model.safetensors").open("r+b") as file:
        file.truncate(100_000)
    return where


def garbled_config(model_dir: Path, where: Path) -> Path:
    directory(model_dir, where)
    (where / "config.json").write_text('{"model_type": "llama", ')
    return where


Make = Callable[[Path, Path], Path]
BROKEN: dict[str, tuple[Make, tuple[str, ...], str]] = {
    "nowhere": (lambda model_dir, where: where, (), "is neither a directory on this machine nor"),
    "unsplittable": (unsplittable, (), "'t5'"),
    "no-config": (lambda m, w: directory(m, w, leave_out="config.json"), (), "no config.json"),
    "garbled-config": (garbled_config, (), "config.json: not JSON"),
    "no-shard": (without_shard, (), "lacks 1 of 3 files: model-00002-of-00003.safetensors"),
    "corrupt-header": (corrupt_header, (), "model.safetensors: header of"),
    "truncated": (truncated, (), "truncated: the header accounts for"),
    "no-such-blocks": (directory, ("--blocks", "0:99"), "'0:99': the model has 8 blocks, 0:8"),
    "no-such-device": (directory, ("--device", "cuda:97"), "'cuda:97': this machine has"),
}


@pytest.fixture(scope="module")
def refusals(
    model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Outcome]]]:
    """Every broken model being served, two at a time: most of each is the import of torch."""
    root = tmp_path_factory.mktemp("broken")

    def attempt(name: str) -> Outcome:
        make, flags, _ = BROKEN[name]
        model = make(model_dir, root / name)
        return serve(str(model), root / f"{name}-state", *flags)

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(attempt, name) for name in BROKEN}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_cannot_be_served_is_named(
    refusals: dict[str, Future[Outcome]], name: str
) -> None:
    refused = refusals[name].result(PATIENCE_S)
    assert refused.code == 2
    assert BROKEN[name][2] in refused.error
    assert refused.out == ""


def test_no_weights_are_read_of_a_model_that_cannot_be_split(
    refusals: dict[str, Future[Outcome]],
) -> None:
    assert "safetensors" not in refusals["unsplittable"].result(PATIENCE_S).err
    # The same file is noticed at once where the family is fine.
    assert "safetensors" in refusals["corrupt-header"].result(PATIENCE_S).err


@contextmanager
def listening() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield f"127.0.0.1:{sock.getsockname()[1]}"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--blocks", "5:3"], "--blocks: a span needs 0 <= start < end, not 5:3"),
        (["--blocks", "foo"], "--blocks: expected auto or START:END"),
        (["--listen", "0.0.0.0:0"], "add --insecure"),
        (["--listen", "0.0.0.0:0", "--insecure"], "--announce"),
        (["--listen", "127.0.0.1:99999"], "must be a number from 0 to 65535"),
        (["--kv-memory", "plenty"], "--kv-memory: expected a size such as 4GiB"),
        (["--dtype", "bf16"], "'bf16' is not one of auto, float32, bfloat16, float16"),
        (["--kv-memmory", "1GiB"], "--kv-memory"),
        (["--listen", "{taken}"], "cannot listen on {taken}: Address already in use"),
        (["--dht-listen", "{taken}"], "choose another one with --dht-listen"),
    ],
)
def test_a_wrong_flag_is_told_before_anything_is_loaded(
    model_dir: Path, tmp_path: Path, flags: list[str], complaint: str
) -> None:
    with listening() as taken:
        given = [flag.format(taken=taken) for flag in flags]
        # The directory of weights is not even looked at.
        refused = serve(str(tmp_path / "nowhere"), tmp_path / "state", *given)
    assert refused.code == 2
    assert complaint.format(taken=taken) in refused.error


def test_a_second_node_cannot_take_the_identity_of_the_first(
    swarm: LocalSwarm, model_dir: Path
) -> None:
    node = swarm.nodes[0]
    refused = serve(str(model_dir), node.directory / "state")
    assert refused.code == 2
    assert f"is in use by the node with process id {node.pid}" in refused.error
    assert node.alive


# -- requests that cannot be fulfilled -------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "code", "complaint"),
    [
        (["x", "--model", "nope"], 2, "nobody in the swarm serves 'nope'; models here: "),
        (["--ids", "1,2,99999"], 2, "id 99999 is out of range: demo_model has 4096 token ids"),
        (["--ids", "1,-2"], 2, "-2 is not a token id"),
        (["--ids", ""], 2, "--ids takes token ids such as 1,2,3"),
        (["x", "--max-tokens", "5000"], 2, "5000 more were asked for; demo_model holds 4096"),
        (["x", "--temperature", "nan"], 2, "temperature must be between 0 and 100, not nan"),
        (["x", "--top-p", "7"], 2, "top_p must be between"),
        (["x", "--stop", ""], 2, "a stop string has 1 to 256 characters"),
        (["x", "--timeout", "0"], 2, "timeout must be a positive number of seconds"),
        (["x", "--timeout", "0.001"], 1, "within the timeout of 0.001 s"),
    ],
)
def test_a_request_that_cannot_be_fulfilled_is_refused(
    whole_swarm: LocalSwarm, line: list[str], code: int, complaint: str
) -> None:
    refused = swarmd("generate", *line, "--node", whole_swarm.addresses[0])
    assert refused.code == code
    assert complaint in refused.error
    assert refused.out == ""


def test_a_prompt_that_is_too_long_is_told_with_the_numbers(client: Client) -> None:
    limit = client.status().models[0].max_model_len
    with pytest.raises(PromptTooLong, match=f"prompt has {limit} tokens; .* holds {limit} in all"):
        client.complete([5] * limit)
    with pytest.raises(PromptTooLong, match=f"{limit - 9} tokens and 10 more were asked for"):
        client.complete([5] * (limit - 9), max_tokens=10)
    with pytest.raises(RequestError, match=r"5,000,\d{3} bytes, at most 4,\d{3},\d{3}"):
        client.complete("x" * 5_000_000)
    assert client.complete([5] * (limit - 10), max_tokens=1).num_prompt_tokens == limit - 10


def test_an_empty_prompt_of_ids_is_refused(client: Client) -> None:
    with pytest.raises(RequestError, match="not empty"):
        client.complete([])
    with pytest.raises(RequestError, match="not empty"):
        client.chat([])


def raw_call(address: str, request: inference_pb2.GenerateRequest) -> grpc.RpcError:
    """Send a request that the client library would not send, and return the refusal."""
    with grpc.insecure_channel(address) as channel:
        stub = inference_pb2_grpc.InferenceStub(channel)
        with pytest.raises(grpc.RpcError) as failure:
            list(stub.Generate(request, timeout=PATIENCE_S))
    return failure.value


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "no prompt"),
        ({"token_ids": {"ids": []}}, "the prompt is empty"),
        ({"token_ids": {"ids": [1 << 31]}}, "is out of range"),
        ({"chat": {"messages": []}}, "message"),
        ({"text": "x", "sampling": {"temperature": -1.0}}, "temperature"),
        ({"text": "x", "sampling": {"top_p": float("nan")}}, "top_p"),
        ({"text": "x", "sampling": {"top_logprobs": 1000}}, "top_logprobs"),
        ({"text": "x", "sampling": {"logit_bias": [{"token_id": 9999, "bias": 1}]}}, "logit_bias"),
        ({"text": "x", "stop": [""]}, "stop"),
        ({"text": "x", "stop": ["y" * 1000]}, "stop"),
        ({"text": "x", "stop": list("abcdefghijklmnopqrstuvwxyz")}, "stop"),
        ({"text": "x", "stop_token_ids": range(1000)}, "stop ids"),
        ({"text": "x", "stop": ["y"], "ids_only": True}, "stop strings"),
        ({"resume": {"session": b"x", "secret": b"y"}}, "16 bytes"),
        ({"resume": {"session": b"x" * 16, "secret": b"y" * 16, "epoch": 1}}, "chunk size"),
    ],
)
def test_what_no_client_of_ours_sends_is_refused_by_the_node(
    whole_swarm: LocalSwarm, fields: dict[str, Any], complaint: str
) -> None:
    refused = raw_call(whole_swarm.addresses[0], inference_pb2.GenerateRequest(**fields))
    assert refused.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert complaint in refused.details()


# -- a node of another model in the same swarm, with little room -----------------------------------


@pytest.fixture(scope="module")
def other(swarm: LocalSwarm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalNode]:
    """A node that serves another model whole, and holds the KV of 128 tokens of it."""
    root = tmp_path_factory.mktemp("other")
    model = write_chat_repo(root / OTHER)
    # 6 blocks, 2 heads of 32 for keys and as many for values, 4 bytes each.
    kv_bytes = KV_TOKENS * 6 * 2 * 2 * 32 * 4
    args = (str(model), "--blocks", ":", "--dtype", "float32", "--threads", "1")
    ports = ("--listen", "127.0.0.1:0", "--dht-listen", "127.0.0.1:0")
    door = ("--peers", swarm.addresses[0], "--kv-memory", str(kv_bytes), "--lease", "5")
    env = {"HF_HOME": str(root / "hf")}
    node = swarm.outsider((*args, *ports, *door), root / "node", env)
    try:
        node.wait_ready(time.monotonic() + PATIENCE_S)
        wait_for_model(swarm.addresses, OTHER)
        yield node
    finally:
        assert node.stop(timeout=60.0) == 0


def wait_for_model(addresses: Sequence[str], name: str) -> None:
    """Wait until every node sees the model."""
    deadline = time.monotonic() + PATIENCE_S
    for address in addresses:
        with Client(address, timeout=30.0) as one:
            while name not in {model.name for model in one.status().models}:
                assert time.monotonic() < deadline, f"{address} does not see {name}"


def test_two_models_in_one_swarm_do_not_mix(
    client: Client, whole_swarm: LocalSwarm, other: LocalNode
) -> None:
    ours = client.complete(PROMPT, max_tokens=8)
    assert other.pid not in {hop.pid for hop in ours.route}
    with Client(other.address, timeout=120.0) as door:
        theirs = door.complete("hello", max_tokens=8)
        assert {model.name for model in door.status().models} == {"demo_model", OTHER}
        # Asked for by name, each model is found through any node.
        assert door.complete(PROMPT, max_tokens=8, model="demo_model").token_ids == ours.token_ids
        with pytest.raises(UnknownModel, match="models here: demo_model, other-model"):
            door.complete(PROMPT, max_tokens=8, model="none-such")
        with pytest.raises(UnknownModel, match=f"serves '{OTHER}', not 'demo_model': ask 127"):
            door.complete(PROMPT, max_tokens=8, model="demo_model", allow_redirect=False)
        with pytest.raises(UnknownModel, match=f"serves '{OTHER}', not 'demo_model': ask 127"):
            door.tokenize("hello", model="demo_model")
    found = client.complete("hello", max_tokens=8, model=OTHER)
    assert found.token_ids == theirs.token_ids
    assert [hop.pid for hop in found.route] == [other.pid]


def test_a_request_beyond_the_kv_budget_is_refused_with_the_numbers(other: LocalNode) -> None:
    with Client(other.address, timeout=120.0) as door:
        with pytest.raises(PromptTooLong, match=rf"\b{KV_TOKENS + 1}\b.*\b{KV_TOKENS}\b"):
            door.complete([5] * 29, max_tokens=KV_TOKENS - 28)
        assert len(door.complete([5] * 28, max_tokens=KV_TOKENS - 28).token_ids) == KV_TOKENS - 28
    refused = swarmd("generate", "--ids", "5,6", "--max-tokens", "200", "--node", other.address)
    assert refused.code == 2
    assert "202" in refused.error
    assert str(KV_TOKENS) in refused.error


def test_sessions_without_room_wait_for_those_that_have_it(other: LocalNode) -> None:
    prompts = [[10 + i] * 20 for i in range(6)]

    def ask(prompt: list[int]) -> Completion:
        with Client(other.address, timeout=120.0) as door:
            return door.complete(prompt, max_tokens=80, ids_only=True, ignore_eos=True)

    alone = [ask(prompt).token_ids for prompt in prompts[:2]]
    # Each takes 100 of 128: never two at once.
    with ThreadPoolExecutor(len(prompts)) as pool:
        together = [done.token_ids for done in pool.map(ask, prompts)]
    assert together[:2] == alone
    assert len(set(together)) == len(prompts)
    assert all(len(ids) == 80 for ids in together)


def test_who_will_not_wait_for_room_is_told_so(other: LocalNode) -> None:
    with Client(other.address, timeout=120.0) as door:
        holder = door.generate([9] * 20, max_tokens=100, ids_only=True, ignore_eos=True)
        next(holder)
        refused = swarmd(
            *("generate", "--ids", "5,6", "--max-tokens", "100"),
            *("--node", other.address, "--timeout", "2"),
        )
        assert refused.code == 1
        assert "within the timeout of 2 s" in refused.error
        holder.close()
        assert len(door.complete([5, 6], max_tokens=100, ignore_eos=True).token_ids) == 100
