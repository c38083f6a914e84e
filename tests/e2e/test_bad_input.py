"""What strangers do to a swarm: each mistake is named in one line, and nobody else notices."""

from __future__ import annotations

import json
import os
import queue
import secrets
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest
from chat_repo import write_chat_repo
from command_line import PATIENCE_S, Outcome, serve, swarmd
from e2e_swarm import no_faults
from forked import forked

from swarmd.cli.local_swarm import LocalNode, LocalSwarm
from swarmd.client import Client
from swarmd.core.errors import PromptTooLong, RequestError, UnknownModel
from swarmd.core.results import Completion
from swarmd.v1 import inference_pb2, inference_pb2_grpc, peer_pb2
from swarmd.wire import limits
from swarmd.wire.sealed import seal

PROMPT = "def fibonacci(n):"
TOKENS = 60
OTHER = "other-model"
KV_TOKENS = 1024
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


def more_blocks(model_dir: Path, where: Path) -> Path:
    """The config of a model with half the blocks."""
    directory(model_dir, where)
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    return where


Make = Callable[[Path, Path], Path]
BROKEN: dict[str, tuple[Make, tuple[str, ...], str]] = {
    "nowhere": (lambda model_dir, where: where, (), "is neither a directory on this machine nor"),
    "unsplittable": (unsplittable, (), "'t5' cannot be split into blocks: they are encoder"),
    "no-config": (lambda m, w: directory(m, w, leave_out="config.json"), (), "no config.json"),
    "no-shard": (without_shard, (), "lacks 1 of 3 files: model-00002-of-00003.safetensors"),
    "corrupt-header": (corrupt_header, (), "model.safetensors: header of"),
    "more-blocks": (more_blocks, ("--blocks", "0:2"), "says 4 blocks (num_hidden_layers), and the"),
    "no-such-blocks": (directory, ("--blocks", "0:99"), "'0:99': the model has 8 blocks, 0:8"),
    "no-room-for-kv": (directory, ("--kv-memory", "1000"), "1,000 bytes for KV hold not one token"),
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
        (["caf\udce9"], 2, "the prompt is not valid text at character 4: it must be UTF-8"),
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


def test_ids_that_the_model_does_not_have_are_no_text(client: Client) -> None:
    assert client.detokenize(client.tokenize("def f")).endswith("def f")
    with pytest.raises(RequestError, match="id 4096 is out of range: demo_model has 4096 token"):
        client.detokenize([5, 4096])


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
    """A node that serves another model whole, and holds the KV of 1024 tokens of it."""
    root = tmp_path_factory.mktemp("other")
    model = write_chat_repo(root / OTHER)
    # 6 blocks, 2 heads of 32 for keys and as many for values, 4 bytes each.
    kv_bytes = KV_TOKENS * 6 * 2 * 2 * 32 * 4
    args = (str(model), "--blocks", ":", "--dtype", "float32", "--threads", "1")
    ports = ("--listen", "127.0.0.1:0", "--dht-listen", "127.0.0.1:0")
    door = ("--peers", swarm.addresses[0], "--kv-memory", str(kv_bytes), "--lease", "5")
    # Strangers may be silent here for as long as a test takes.
    door += ("--link-memory", "64MiB", "--link-timeout", "120")
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    node = LocalNode((*args, *ports, *door), root / "node", env, launch=forked)
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
        with pytest.raises(PromptTooLong, match=r"\b9000 positions of other-model\b.*room for \d+"):
            door.complete([5] * 1000, max_tokens=8000)
        # To the last position, and not one less.
        assert door.complete([5] * 1000, max_tokens=KV_TOKENS - 1000, ignore_eos=True)
    refused = swarmd("generate", "--ids", "5,6", "--max-tokens", "8000", "--node", other.address)
    assert refused.code == 2
    assert "8002 positions of other-model" in refused.error


def test_sessions_without_room_wait_for_those_that_have_it(other: LocalNode) -> None:
    # Each takes 520 of 1024 positions: never two at once.
    prompts = [[10 + i] * 480 for i in range(4)]

    def ask(prompt: list[int]) -> tuple[int, ...]:
        with Client(other.address, timeout=120.0) as door:
            return door.complete(prompt, max_tokens=40, ignore_eos=True).token_ids

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(len(prompts)) as pool, Client(other.address, timeout=30.0) as door:
        together = [pool.submit(ask, prompt) for prompt in prompts]
        counters = [door.status().counters]
        while not all(done.done() for done in together):
            counters.append(door.status().counters)
    assert [done.result() for done in together] == alone
    assert max(seen["coordinator_sessions"] for seen in counters) > 1
    assert max(seen["hop_sessions"] for seen in counters) == 1


class Stranger:
    """Somebody who calls `Peer.Link` of a node and says what he likes."""

    def __init__(self, address: str, *messages: peer_pb2.Frame | bytes) -> None:
        self._channel = grpc.insecure_channel(address)
        self._said: queue.SimpleQueue[peer_pb2.Frame | bytes | None] = queue.SimpleQueue()
        self.say(*messages)
        link = self._channel.stream_stream(
            "/swarmd.v1.Peer/Link",
            request_serializer=lambda m: m if isinstance(m, bytes) else seal(m),
            response_deserializer=peer_pb2.Frame.FromString,
        )
        self._call = link(iter(self._said.get, None), timeout=PATIENCE_S)

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self._said.put(None)
        self._call.cancel()
        self._channel.close()

    def say(self, *messages: peer_pb2.Frame | bytes) -> None:
        for message in messages:
            self._said.put(message)

    def hear(self, kind: str) -> Any:
        """Return the next frame of that kind."""
        return next(getattr(f, kind) for f in self._call if f.WhichOneof("body") == kind)

    def answer(self) -> str:
        """Return the kind of the next frame that is no heartbeat."""
        return next(kind for f in self._call if (kind := str(f.WhichOneof("body"))) != "heartbeat")

    def refusal(self) -> tuple[grpc.StatusCode, str]:
        """Wait for the node to end the call; a link that was accepted before just ends."""
        with suppress(grpc.RpcError):
            for _ in self._call:
                pass
        return self._call.code(), self._call.details()


def hello(peer_id: str, protocol: int = limits.PROTOCOL) -> peer_pb2.Frame:
    return peer_pb2.Frame(hello=peer_pb2.Hello(protocol=protocol, peer_id=peer_id))


def somebody() -> peer_pb2.Frame:
    return hello(secrets.token_hex(20))


def open_frame(client: Client, session: bytes, secret: bytes, **fields: Any) -> peer_pb2.Frame:
    """A proper order to hold KV for a session, but for what `fields` say."""
    digest = next(model.digest for model in client.status().models)
    order = {
        "session": session,
        "secret": secret,
        "epoch": 1,
        "fresh": True,
        "model_digest": digest,
        "prev_peer": "a" * 40,
        "max_positions": 100,
        "prompt_tokens": 1,
    }
    return peer_pb2.Frame(open=peer_pb2.Open(**(order | fields)))


def test_who_will_not_wait_for_room_is_told_so(other: LocalNode) -> None:
    reserve = {"start": 0, "end": 6, "max_positions": KV_TOKENS, "sampling": peer_pb2.Sampling()}
    session, secret = secrets.token_bytes(16), secrets.token_bytes(16)
    line = ("generate", "--ids", "5,6", "--max-tokens", "10", "--node", other.address)
    with Client(other.address, timeout=120.0) as door, ExitStack() as stack:
        model = next(model for model in door.status().models if model.name == OTHER)
        order = partial(open_frame, door, session, secret, model_digest=model.digest, **reserve)
        holder = stack.enter_context(Stranger(other.address, somebody(), order()))
        assert holder.hear("opened").refusal == peer_pb2.REFUSAL_UNSPECIFIED
        done = threading.Event()

        def renew() -> None:
            # A reservation that is not used lapses after 5 s.
            for epoch in range(2, 1000):
                if done.wait(1.0):
                    return
                holder.say(order(epoch=epoch))

        renewing = threading.Thread(target=renew)
        renewing.start()
        try:
            refused = swarmd(*line, "--timeout", "3")
        finally:
            done.set()
            renewing.join()
        assert refused.code == 1
        assert "0 tokens came within the timeout of 3 s" in refused.error
        # Nobody renews it now, so there is room soon, though the holder never gave it back.
        assert swarmd(*line).code == 0


def test_frames_that_never_end_take_a_bounded_amount_of_memory(other: LocalNode) -> None:
    parts = [
        peer_pb2.Frame(
            fragment=peer_pb2.Fragment(
                frame=1,
                total_bytes=limits.MAX_FRAME_BYTES,
                offset=n * (3 << 20),
                data=bytes(3 << 20),
            )
        )
        for n in range(11)
    ]
    unknown = peer_pb2.Step(session=bytes(16), epoch=1, chunks=[1], token_ids=[7])
    with Stranger(other.address, somebody(), *parts) as first:
        # Links keep the order: with this answered, the parts have come.
        first.say(peer_pb2.Frame(steps=peer_pb2.Steps(steps=[unknown])))
        first.hear("failed")
        with Stranger(other.address, somebody(), *parts) as second:
            # Both together would hold 66 MiB, and the second no less than the first.
            code, details = second.refusal()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "would exceed 67108864 bytes" in details
    assert (
        swarmd("generate", "--ids", "5,6", "--max-tokens", "4", "--node", other.address).code == 0
    )


# -- what the port is sent -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(swarm: LocalSwarm) -> tuple[int, ...]:
    with Client(swarm.addresses, timeout=120.0) as client:
        return client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True).token_ids


@pytest.fixture
def others_generate(
    client: Client, whole_swarm: LocalSwarm, reference: tuple[int, ...]
) -> Iterator[None]:
    """All through the test somebody else generates, and notices nothing."""
    stop = threading.Event()
    results: list[Completion] = []

    def generate() -> None:
        while not stop.is_set():
            results.append(client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True))

    with no_faults(whole_swarm):
        with ThreadPoolExecutor(1) as pool:
            generating = pool.submit(generate)
            try:
                yield
            finally:
                stop.set()
            generating.result(PATIENCE_S)
        results.append(client.complete(PROMPT, max_tokens=TOKENS, ignore_eos=True))
    assert {done.token_ids for done in results} == {reference}


def drained(sock: socket.socket) -> bytes:
    """Everything that comes until the other side hangs up."""
    sock.settimeout(60.0)
    heard = b""
    with suppress(ConnectionError):
        while data := sock.recv(65536):
            heard += data
    return heard


@pytest.mark.parametrize(
    "noise",
    [
        Random(0).randbytes(1 << 16),
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + Random(1).randbytes(1 << 16),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
    ],
    ids=["garbage", "http1", "http2-garbage", "tls"],
)
@pytest.mark.usefixtures("others_generate")
def test_noise_on_the_port_is_hung_up_on(swarm: LocalSwarm, noise: bytes) -> None:
    for address in swarm.addresses[:3]:
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), 60.0) as sock:
            with suppress(ConnectionError):
                sock.sendall(noise)
            assert b"swarmd" not in drained(sock)


@pytest.mark.usefixtures("others_generate")
def test_callers_that_say_nothing_are_in_nobodys_way(swarm: LocalSwarm) -> None:
    with ExitStack() as stack:
        for address in swarm.addresses[:3]:
            host, port = address.split(":")
            for _ in range(50):
                stack.enter_context(socket.create_connection((host, int(port)), 60.0))
        silent = [stack.enter_context(Stranger(address)) for address in swarm.addresses[:3]]
        for stranger in silent:
            code, details = stranger.refusal()
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert "no hello within 5 s" in details


@pytest.mark.usefixtures("others_generate")
def test_malformed_frames_end_the_link_and_nothing_else(swarm: LocalSwarm) -> None:
    large = peer_pb2.Frame(close=peer_pb2.Close(session=bytes(limits.RECEIVE_MESSAGE_BYTES)))
    promise = peer_pb2.Frame(fragment=peer_pb2.Fragment(total_bytes=1 << 40, data=b"x"))
    tensor = peer_pb2.Tensor(dtype=peer_pb2.DTYPE_FLOAT32, shape=[1 << 31, 1 << 31], data=b"x")
    step = peer_pb2.Step(session=bytes(16), epoch=1, chunks=[1], hidden=tensor)
    for messages, code, complaint in (
        ((b"\xff\xff\xff",), grpc.StatusCode.INVALID_ARGUMENT, "not a frame"),
        ((large,), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
        ((peer_pb2.Frame(),), grpc.StatusCode.INVALID_ARGUMENT, "must be a hello"),
        ((hello("x"),), grpc.StatusCode.INVALID_ARGUMENT, "40 hex digits"),
        ((hello("a" * 40, 9),), grpc.StatusCode.INVALID_ARGUMENT, "link protocol 9"),
        ((somebody(), b"\xff\xff\xff"), grpc.StatusCode.OK, ""),
        ((somebody(), large), grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max"),
        ((somebody(), promise), grpc.StatusCode.OK, ""),
        ((somebody(), peer_pb2.Frame(steps=peer_pb2.Steps(steps=[step]))), grpc.StatusCode.OK, ""),
    ):
        for address in swarm.addresses[:3]:
            with Stranger(address, *messages) as stranger:
                ended, details = stranger.refusal()
                assert (ended, complaint in details) == (code, True), details


@pytest.mark.usefixtures("others_generate")
def test_calls_that_do_not_exist_or_are_too_large_are_refused(swarm: LocalSwarm) -> None:
    for address in swarm.addresses[:3]:
        for method, message, code in (
            ("Inference/Nope", b"", grpc.StatusCode.UNIMPLEMENTED),
            ("Inference/Status", b"\xff\xff", grpc.StatusCode.UNKNOWN),
            ("Inference/Tokenize", bytes(5 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED),
        ):
            with grpc.insecure_channel(address) as channel:
                call = channel.unary_unary(f"/swarmd.v1.{method}")
                with pytest.raises(grpc.RpcError) as failure:
                    call(message, timeout=PATIENCE_S)
            assert failure.value.code() is code, method


def test_strangers_have_no_say_in_a_session(
    client: Client, whole_swarm: LocalSwarm, reference: tuple[int, ...]
) -> None:
    # Long enough to be running still when the last hop has been meddled with.
    with no_faults(whole_swarm):
        tokens = client.generate(PROMPT, max_tokens=3000, ignore_eos=True)
        ids = [next(tokens).id]
        session = bytes.fromhex(tokens.session)
        for hop in tokens.route:
            meddle(client, hop.address, session, hop.blocks.start, hop.blocks.end)
        while len(ids) < len(reference):
            ids.append(next(tokens).id)
        assert tuple(ids) == reference
        tokens.close()


def meddle(client: Client, address: str, session: bytes, start: int, end: int) -> None:
    """Send a node every frame about somebody else's session."""
    ours = {"session": session, "epoch": 1}
    later = {"session": session, "epoch": 99}
    step = peer_pb2.Step(**ours, round=9, position=0, chunks=[1], token_ids=[7], wants=[0])
    token = peer_pb2.Token(**ours, position=9, id=7)
    forged = open_frame(client, session, bytes(16), epoch=99, start=start, end=end)
    unknown = peer_pb2.Step(session=bytes(16), epoch=1, chunks=[1], token_ids=[7])
    with Stranger(address, somebody()) as stranger:
        stranger.say(
            peer_pb2.Frame(steps=peer_pb2.Steps(steps=[step])),
            peer_pb2.Frame(tokens=peer_pb2.Tokens(tokens=[token])),
            peer_pb2.Frame(gap=peer_pb2.Gap(**ours)),
            peer_pb2.Frame(failed=peer_pb2.Failed(**ours, refusal=peer_pb2.REFUSAL_BAD_STEP)),
            peer_pb2.Frame(opened=peer_pb2.Opened(**ours, refusal=peer_pb2.REFUSAL_DRAINING)),
            peer_pb2.Frame(resume=peer_pb2.Resume(**later)),
            peer_pb2.Frame(close=peer_pb2.Close(**later)),
            forged,
            # Links keep the order: with this answered, all that came before has been dealt with.
            peer_pb2.Frame(steps=peer_pb2.Steps(steps=[unknown])),
        )
        assert stranger.hear("opened").refusal == peer_pb2.REFUSAL_WRONG_SECRET
        assert stranger.hear("failed").refusal == peer_pb2.REFUSAL_UNKNOWN_SESSION


@pytest.mark.usefixtures("others_generate")
def test_activations_of_nonsense_harm_only_their_own_session(
    client: Client, swarm: LocalSwarm
) -> None:
    last = next(peer for peer in client.status().peers if peer.blocks and peer.blocks.end == 8)
    hidden = struct.pack("<f", float("nan")) * 192
    for temperature in (0.0, 1.0):
        session, sender = secrets.token_bytes(16), secrets.token_hex(20)
        order = open_frame(
            *(client, session, bytes(16)),
            start=6,
            end=8,
            prev_peer=sender,
            sampling=peer_pb2.Sampling(temperature=temperature),
        )
        tensor = peer_pb2.Tensor(dtype=peer_pb2.DTYPE_FLOAT32, shape=[1, 192], data=hidden)
        step = peer_pb2.Step(session=session, epoch=1, chunks=[1], hidden=tensor, wants=[0])
        with Stranger(last.address, hello(sender), order) as stranger:
            assert stranger.hear("opened").refusal == peer_pb2.REFUSAL_UNSPECIFIED
            stranger.say(peer_pb2.Frame(steps=peer_pb2.Steps(steps=[step])))
            assert stranger.answer() in ("failed", "tokens")
            stranger.say(peer_pb2.Frame(close=peer_pb2.Close(session=session, epoch=1)))
