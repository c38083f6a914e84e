"""What a driver makes of a hop's refusal: whose fault it is, and whether another try may help.

Hops choose the refusal in `hop.HopTable`; the wire's numbers are `swarmd.core.frames`'s.
"""

from __future__ import annotations

from swarmd.core.errors import (
    CoverageError,
    KVExhausted,
    PeerError,
    PeerUnreachable,
    PromptTooLong,
    RequestError,
    SessionError,
    SessionLost,
    SwarmdError,
    WrongModel,
)
from swarmd.core.frames import Refusal

FINAL = frozenset({Refusal.BAD_REQUEST, Refusal.STALE_EPOCH, Refusal.KEPT_FULL})
"""No hop would say anything else; or it is not worth asking, as what is kept stays for minutes, and
who waited for it would hold up those who ask for less."""

LASTING = frozenset(
    {
        Refusal.WRONG_MODEL,
        Refusal.WRONG_BLOCKS,
        Refusal.WRONG_SECRET,
        Refusal.TOO_LONG,
        Refusal.DRAINING,
    }
)
"""This hop will not say anything else for some time."""

_ERRORS: dict[Refusal, type[SwarmdError]] = {
    Refusal.WRONG_MODEL: WrongModel,
    Refusal.WRONG_BLOCKS: PeerError,
    Refusal.KV_EXHAUSTED: KVExhausted,
    Refusal.TOO_LONG: PromptTooLong,
    Refusal.WRONG_SECRET: SessionLost,
    Refusal.STALE_EPOCH: SessionLost,
    Refusal.DRAINING: PeerError,
    Refusal.UNKNOWN_PEER: PeerUnreachable,
    Refusal.UNKNOWN_SESSION: SessionLost,
    Refusal.NEXT_UNREACHABLE: PeerUnreachable,
    Refusal.COMPUTE_FAILED: SessionError,
    Refusal.BAD_STEP: SessionError,
    Refusal.BAD_REQUEST: RequestError,
    Refusal.KEPT_FULL: KVExhausted,
}


def refusal_error(refusal: Refusal, message: str) -> SwarmdError:
    """The error that a request ends with when this refusal is the last word."""
    return _ERRORS[refusal](f"{message} ({refusal.name})")


def uncovered(
    model: str, missing: tuple[tuple[int, int], ...], last: SwarmdError | None
) -> CoverageError:
    """The error that names blocks without a holder, and what the last peer that was tried said."""
    blocks = ", ".join(f"{start}:{end}" for start, end in missing)
    tried = f" (the last peer tried: {last})" if isinstance(last, PeerError) else ""
    message = f"no live peer holds blocks {blocks} of {model}{tried}: start a node that serves them"
    return CoverageError(message, missing)
