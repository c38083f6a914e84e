"""An error raised in a node is the same error in the client; a stranger's status is no crash."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from swarmd.core import errors
from swarmd.core.errors import CapacityError, CoverageError, NodeLoading, SwarmdError
from swarmd.wire import status
from swarmd.wire.channel import dial, new_server


def tree(cls: type[SwarmdError]) -> set[type[SwarmdError]]:
    return {cls}.union(*(tree(sub) for sub in cls.__subclasses__()))


# Rooms may have finer ones of their own; those travel as the class that they are made of.
CLASSES = sorted(
    (cls for cls in tree(SwarmdError) if cls.__module__ == SwarmdError.__module__),
    key=lambda cls: cls.__name__,
)


def make(cls: type[SwarmdError]) -> SwarmdError:
    if issubclass(cls, CapacityError | NodeLoading):
        return cls("full: 3 of 3 in use", retry_after_s=2.5)
    if issubclass(cls, CoverageError):
        return cls("blocks 4:8 are missing", [(4, 8), (12, 16)])
    return cls(f"what {cls.__name__} says: größer als 7")


class Aborting:
    """A gRPC server whose one method aborts as it is told."""

    def __init__(self) -> None:
        self.action: Callable[[Any], Any] | None = None

    async def call(self, request: bytes, context: Any) -> bytes:
        assert self.action is not None
        await self.action(context)
        return b""

    async def fail(self, channel: Any, action: Callable[[Any], Any]) -> SwarmdError:
        self.action = action
        with pytest.raises(grpc.RpcError) as caught:
            await channel.unary_unary("/test.Test/Call")(b"", timeout=20)
        return status.error_from_rpc(caught.value, "node:1")


@pytest.fixture
async def server() -> AsyncIterator[tuple[Aborting, Any]]:
    aborting, grpc_server = Aborting(), new_server()
    handler = grpc.unary_unary_rpc_method_handler(aborting.call)
    grpc_server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("test.Test", {"Call": handler}),)
    )
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    async with dial(f"127.0.0.1:{port}") as channel:
        yield aborting, channel
    await grpc_server.stop(None)


async def test_every_class_survives_the_wire(server: tuple[Aborting, Any]) -> None:
    aborting, channel = server
    assert set(status.CODES) == set(CLASSES)
    for cls in CLASSES:
        sent = make(cls)

        async def raising(context: Any, error: SwarmdError = sent) -> None:
            await status.abort(context, error)

        got = await aborting.fail(channel, raising)
        assert type(got) is cls
        assert str(got) == str(sent)
        assert vars(got) == vars(sent)


async def test_a_foreign_error_keeps_its_text_in_the_node(server: tuple[Aborting, Any]) -> None:
    aborting, channel = server
    secret = ValueError("/home/x/secret")
    got = await aborting.fail(channel, lambda context: status.abort(context, secret))
    assert type(got) is SwarmdError
    assert "ValueError" in str(got)
    assert "secret" not in str(got)
    assert status.status_code(secret) is grpc.StatusCode.INTERNAL


async def test_a_subclass_that_others_do_not_know_arrives_as_its_parent(
    server: tuple[Aborting, Any],
) -> None:
    own = type("Own", (errors.KVExhausted,), {})("full", 3.0)
    aborting, channel = server
    got = await aborting.fail(channel, lambda context: status.abort(context, own))
    assert type(got) is errors.KVExhausted
    assert vars(got) == {"retry_after_s": 3.0}


@pytest.mark.parametrize(
    ("code", "text", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, "refused", errors.PeerUnreachable),
        (grpc.StatusCode.CANCELLED, "", errors.PeerUnreachable),
        (grpc.StatusCode.ABORTED, "", errors.PeerUnreachable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "late", errors.DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "busy", errors.CapacityError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max", errors.ProtocolError),
        (grpc.StatusCode.UNIMPLEMENTED, "", errors.ProtocolError),
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM", errors.PeerUnreachable),
        (grpc.StatusCode.UNKNOWN, "Stream removed", errors.PeerUnreachable),
        (grpc.StatusCode.UNKNOWN, "boom", errors.SwarmdError),
        (grpc.StatusCode.DATA_LOSS, "hm", errors.SwarmdError),
    ],
)
async def test_statuses_without_our_metadata(
    server: tuple[Aborting, Any], code: grpc.StatusCode, text: str, cls: type[SwarmdError]
) -> None:
    aborting, channel = server
    got = await aborting.fail(channel, lambda context: context.abort(code, text))
    assert type(got) is cls
    assert str(got).startswith("node:1: ")
    assert text in str(got)


async def test_hostile_metadata_is_not_believed(server: tuple[Aborting, Any]) -> None:
    aborting, channel = server

    def saying(name: str, **pairs: str) -> Callable[[Any], Any]:
        metadata = ((status.ERROR_KEY, name), *((f"swarmd-{k}", v) for k, v in pairs.items()))
        keyed = tuple((k.replace("_", "-"), v) for k, v in metadata)
        return lambda context: context.abort(grpc.StatusCode.INTERNAL, "x\x1b[31mred\n", keyed)

    assert type(await aborting.fail(channel, saying("KeyboardInterrupt"))) is SwarmdError
    late = await aborting.fail(channel, saying("KVExhausted", retry_after_ms="9" * 9))
    assert isinstance(late, CapacityError)
    assert late.retry_after_s == status.MAX_RETRY_S
    odd = await aborting.fail(channel, saying("QueueFull", retry_after_ms="-5"))
    assert isinstance(odd, CapacityError)
    assert odd.retry_after_s == 1.0
    ranges = "4:8,8:4,x:y,1:99999,:3,²:4," + "0:1," * 200
    gaps = await aborting.fail(
        channel, saying("CoverageError", missing_blocks=ranges.replace("²", ""))
    )
    assert isinstance(gaps, CoverageError)
    assert gaps.missing[0] == (4, 8)
    assert set(gaps.missing) == {(4, 8), (0, 1)}
    assert len(gaps.missing) <= 64
    assert "\x1b" not in str(gaps)


async def test_a_dead_port_is_an_unreachable_peer() -> None:
    async with dial("127.0.0.1:1") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await channel.unary_unary("/test.Test/Call")(b"", timeout=20)
    got = status.error_from_rpc(caught.value, "127.0.0.1:1")
    assert type(got) is errors.PeerUnreachable


def test_errors_of_a_stream_that_has_ended() -> None:
    ended = status.error_from_rpc(asyncio.InvalidStateError("gone"))
    assert type(ended) is errors.PeerUnreachable
    assert type(status.error_from_rpc(ValueError("x"))) is SwarmdError


def test_long_text_is_cut_before_it_bursts_the_header() -> None:
    assert len(status.details(SwarmdError("ä" * sys.maxunicode))) == 1000
