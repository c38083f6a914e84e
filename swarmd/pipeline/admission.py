"""Whether a hop may take part in a session: what its opens and steps are held against.

KV is reserved, and the session made, by `hop.HopTable`.
"""

from __future__ import annotations

import hmac

from swarmd.core.frames import Open, Opened, Refusal, Step
from swarmd.core.peers import ModelInfo
from swarmd.pipeline.hop_session import HopSession
from swarmd.pipeline.hop_values import HopPolicy, StageFacts, longest_step
from swarmd.pipeline.shortage import Shortage


class Refused(Exception):
    """An open that is answered with no."""

    def __init__(self, refusal: Refusal, message: str, epoch: int = 0) -> None:
        super().__init__(message)
        self.refusal = refusal
        self.epoch = epoch
        """The epoch that the session has here, where that is the reason."""


def check_claim(session: HopSession, sender: str, order: Open) -> None:
    """Raise Refused unless the sender may speak for a session that is known here.

    A coordinator may repeat its own open; anybody else must know the secret and a later epoch.
    """
    if not hmac.compare_digest(session.secret, order.secret):
        raise Refused(Refusal.WRONG_SECRET, "the secret is not that of this session")
    oldest = session.epoch if sender == session.coordinator else session.epoch + 1
    if order.epoch < oldest:
        message = f"epoch {order.epoch} is not after {session.epoch}"
        raise Refused(Refusal.STALE_EPOCH, message, session.epoch)


def check_order(order: Open, facts: StageFacts) -> None:
    """Raise Refused unless this stage can do what the open asks for."""
    model, span = facts.model, facts.span
    if order.model_digest != model.digest:
        raise Refused(Refusal.WRONG_MODEL, f"this node serves {model.name} {model.digest}")
    if not span.covers(order.blocks):
        message = f"blocks {order.blocks} are not within {span}, which this node serves"
        raise Refused(Refusal.WRONG_BLOCKS, message)
    if (order.blocks.end == model.num_blocks) != (not order.next_peer):
        raise Refused(Refusal.BAD_REQUEST, "the last hop, and no other, has no next one")
    if not order.next_peer and order.sampling is None:
        raise Refused(Refusal.BAD_REQUEST, "the last hop needs sampling parameters")


def check_length(order: Open, capacity: int) -> None:
    """Raise Refused when not even an empty KV budget would do."""
    if order.max_positions > capacity:
        message = f"{order.max_positions} positions asked for, {capacity} at most fit here"
        raise Refused(Refusal.TOO_LONG, message)


def check_newcomer(count: int, policy: HopPolicy, shortage: Shortage, draining: bool) -> None:
    """Raise Refused where a session that is not known here cannot join the `count` that are."""
    if draining:
        raise Refused(Refusal.DRAINING, "this node is draining")
    if shortage:
        pause = f"{shortage.seconds:g} s"
        message = f"this machine ran out of memory: nobody new is taken for {pause}"
        raise Refused(Refusal.KV_EXHAUSTED, message)
    if count >= policy.max_sessions:
        raise Refused(Refusal.KV_EXHAUSTED, f"{count} sessions are open here")


def opened(session: HopSession, facts: StageFacts, free_bytes: int) -> Opened:
    """The answer to an open that is not refused."""
    return Opened(
        session.id,
        session.epoch,
        kv_length=session.length,
        log_start=session.log.start,
        kv_free_bytes=free_bytes,
        pid=facts.pid,
        chunk_exact=facts.chunk_exact,
        copies=facts.rewinds,
    )


def misfit(session: HopSession, step: Step, model: ModelInfo) -> str:
    """Return why a step cannot be one of this session; empty if it can."""
    if not step.chunks or min(step.chunks) < 1 or step.position < 0:
        return "a step needs chunks of at least one position"
    if step.end > session.max_positions:
        return f"position {step.end} is beyond the {session.max_positions} reserved"
    if session.next_peer and step.length > 1 and step.length > (most := longest_step(model)):
        return f"a step of {step.length} positions does not fit into a frame, {most} do"
    if step.wants and not step.position <= min(step.wants) <= max(step.wants) < step.end:
        return "a wanted position lies outside the step"
    if session.blocks.start == 0:
        if step.hidden is not None or len(step.token_ids) != step.length:
            return f"the first hop needs {step.length} token ids"
        if not 0 <= min(step.token_ids) <= max(step.token_ids) < model.vocab_size:
            return f"token ids must be below {model.vocab_size}"
        return ""
    if step.hidden is None or step.hidden.shape != (step.length, model.hidden_size):
        return f"this hop needs hidden states of shape {(step.length, model.hidden_size)}"
    return ""
