"""Errors to gRPC statuses and back: codes for all, trailing metadata for swarmd's own classes.

Which error to raise, and whether to try again, is decided elsewhere. Metadata keys are the ones at
the top of inference.proto; all of it comes from the network and is checked before it is believed.
"""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import grpc

from swarmd.core import errors
from swarmd.core.errors import CapacityError, CoverageError, NodeLoading, SwarmdError
from swarmd.wire.limits import MAX_BLOCKS, MAX_TEXT

ERROR_KEY = "swarmd-error"
RETRY_KEY = "swarmd-retry-after-ms"
MISSING_KEY = "swarmd-missing-blocks"
MAX_RETRY_S = 3600.0
_MAX_RANGES = 64

_Code = grpc.StatusCode

CODES: dict[type[SwarmdError], grpc.StatusCode] = {
    errors.SwarmdError: _Code.UNKNOWN,
    errors.UsageError: _Code.INVALID_ARGUMENT,
    errors.ModelError: _Code.FAILED_PRECONDITION,
    errors.WeightsError: _Code.DATA_LOSS,
    errors.ConfigError: _Code.INVALID_ARGUMENT,
    errors.RequestError: _Code.INVALID_ARGUMENT,
    errors.PromptTooLong: _Code.INVALID_ARGUMENT,
    errors.UnknownModel: _Code.NOT_FOUND,
    errors.AmbiguousModel: _Code.NOT_FOUND,
    errors.CapacityError: _Code.RESOURCE_EXHAUSTED,
    errors.KVExhausted: _Code.RESOURCE_EXHAUSTED,
    errors.QueueFull: _Code.RESOURCE_EXHAUSTED,
    errors.CoverageError: _Code.UNAVAILABLE,
    errors.SessionError: _Code.ABORTED,
    errors.SessionLost: _Code.ABORTED,
    errors.LeaseEnded: _Code.NOT_FOUND,
    errors.DeadlineExceeded: _Code.DEADLINE_EXCEEDED,
    errors.PeerError: _Code.UNAVAILABLE,
    errors.ProtocolError: _Code.INVALID_ARGUMENT,
    errors.PeerUnreachable: _Code.UNAVAILABLE,
    errors.NodeLoading: _Code.UNAVAILABLE,
    errors.WrongModel: _Code.FAILED_PRECONDITION,
    errors.HubError: _Code.UNAVAILABLE,
    errors.HubRefused: _Code.FAILED_PRECONDITION,
    errors.DirectoryError: _Code.UNAVAILABLE,
}
"""One code per class; a test walks the tree."""

_BY_NAME = {cls.__name__: cls for cls in CODES}

# Statuses without our metadata come from gRPC itself: the node is gone, or is no node.
_UNTYPED: dict[grpc.StatusCode, type[SwarmdError]] = {
    _Code.UNAVAILABLE: errors.PeerUnreachable,
    _Code.CANCELLED: errors.PeerUnreachable,
    _Code.ABORTED: errors.PeerUnreachable,
    _Code.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    _Code.RESOURCE_EXHAUSTED: errors.CapacityError,
    _Code.INVALID_ARGUMENT: errors.RequestError,
    _Code.UNIMPLEMENTED: errors.ProtocolError,
}
# gRPC reports a cut connection under these codes too, and only the text tells.
_CUT = ("rst_stream", "stream removed", "connection", "goaway", "socket", "transport")


def status_code(error: BaseException) -> grpc.StatusCode:
    """Return the code for an error: INTERNAL for one that swarmd does not raise on purpose."""
    for cls in type(error).__mro__:
        if cls in CODES:
            return CODES[cls]
    return _Code.INTERNAL


def details(error: BaseException) -> str:
    """Return the text of the status. A foreign error's own text stays in the node's log."""
    if isinstance(error, SwarmdError):
        return str(error)[:MAX_TEXT]
    return f"internal error ({type(error).__name__}); the node's log has the details"


def trailing_metadata(error: BaseException) -> tuple[tuple[str, str], ...]:
    """Return the metadata from which `error_from_rpc` makes the same error again."""
    known = next((cls for cls in type(error).__mro__ if cls in CODES), SwarmdError)
    pairs = [(ERROR_KEY, known.__name__)]
    if isinstance(error, CapacityError | NodeLoading):
        pairs.append((RETRY_KEY, str(round(error.retry_after_s * 1000))))
    if isinstance(error, CoverageError):
        ranges = (f"{start}:{end}" for start, end in error.missing[:_MAX_RANGES])
        pairs.append((MISSING_KEY, ",".join(ranges)))
    return tuple(pairs)


async def abort(context: Any, error: BaseException) -> NoReturn:
    """End a call of a grpc.aio servicer with the status of an error."""
    await context.abort(status_code(error), details(error), trailing_metadata(error))
    raise AssertionError("grpc's abort returned")


def error_from_rpc(error: BaseException, address: str = "") -> SwarmdError:
    """Return the error behind a failed call: the class that the node named, or one by code.

    `address` is the node that was called, named where the node itself did not speak.
    """
    if not isinstance(error, grpc.RpcError):
        # grpc.aio raises this from writes to a stream that has ended.
        kind = (
            errors.PeerUnreachable
            if isinstance(error, asyncio.InvalidStateError)
            else errors.SwarmdError
        )
        return kind(f"{_at(address)}the call failed: {type(error).__name__}: {error}")
    metadata = _metadata(error)
    text = printable(str(error.details() or ""))[:MAX_TEXT]
    named = _BY_NAME.get(metadata.get(ERROR_KEY, ""))
    if named is None:
        return _untyped(error.code(), text, address)
    if issubclass(named, CapacityError | NodeLoading):
        return named(text, _retry_after(metadata.get(RETRY_KEY, "")))
    if issubclass(named, CoverageError):
        return named(text, _missing(metadata.get(MISSING_KEY, "")))
    return named(text)


def is_silence(error: BaseException | None) -> bool:
    """Whether a call has failed without a word of the node's: the way to it, or it, is gone."""
    return isinstance(error, grpc.RpcError) and ERROR_KEY not in _metadata(error)


def printable(text: str) -> str:
    """Return the text without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _untyped(code: grpc.StatusCode, text: str, address: str) -> SwarmdError:
    where = _at(address)
    if code is _Code.RESOURCE_EXHAUSTED and "larger than" in text:
        return errors.ProtocolError(f"{where}{text}")
    if code is _Code.UNIMPLEMENTED:
        return errors.ProtocolError(f"{where}no swarmd node answers there: {text}")
    if code in (_Code.INTERNAL, _Code.UNKNOWN) and any(word in text.lower() for word in _CUT):
        return errors.PeerUnreachable(f"{where}the connection broke: {text}")
    kind = _UNTYPED.get(code, errors.SwarmdError)
    name = code.name if isinstance(code, _Code) else str(code)
    return kind(f"{where}{text or 'the call failed'} ({name})")


def _at(address: str) -> str:
    return f"{address}: " if address else ""


def _metadata(error: Any) -> dict[str, str]:
    pairs = error.trailing_metadata() if hasattr(error, "trailing_metadata") else None
    return {str(key): str(value) for key, value in pairs or () if isinstance(value, str)}


def _retry_after(text: str) -> float:
    whole = text.isascii() and text.isdecimal() and len(text) < 10
    return min(int(text) / 1000, MAX_RETRY_S) if whole else 1.0


def _missing(text: str) -> tuple[tuple[int, int], ...]:
    ranges = (_block_range(part) for part in text.split(",")[:_MAX_RANGES])
    return tuple(found for found in ranges if found is not None)


def _block_range(text: str) -> tuple[int, int] | None:
    start, _, end = text.partition(":")
    if not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in (start, end)):
        return None
    return (int(start), int(end)) if int(start) < int(end) <= MAX_BLOCKS else None
