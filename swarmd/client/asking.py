"""Asking one node after another, until one of them does it or says why not.

Who may be asked next, and whether to wait, is decided by `resume`.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from swarmd.client.resume import another_node_may_do, loading_wait
from swarmd.core.errors import DeadlineExceeded, PeerUnreachable, SwarmdError

T = TypeVar("T")

LEAST_S = 0.1
"""With less time left than that it is not worth asking again."""
NO_NEWS_S = 1.0
"""Who was asked with less time left than that, and was still silent at its end, has told nothing
new: what all of them said before holds."""

logger = logging.getLogger("swarmd.client")


async def ask_each(
    addresses: Callable[[], Sequence[str]],
    ask: Callable[[str], Awaitable[T]],
    until: float,
    pause: Callable[[float], Awaitable[None]],
) -> T:
    """Return what the first node answers that can; a refusal with a reason is final.

    `addresses` are read anew in each pass over all of them. A node that loads its model is waited
    for by `pause`, nearly up to `until` in seconds of `time.monotonic`; then its refusal is raised.
    Raises PeerUnreachable if nobody answers.
    """
    began = time.monotonic()
    level = logging.INFO
    refusal: SwarmdError | None = None
    while True:
        failed: list[SwarmdError] = []
        no_news = until - time.monotonic() < NO_NEWS_S
        for address in addresses():
            try:
                return await ask(address)
            except SwarmdError as error:
                if refusal and no_news and isinstance(error, DeadlineExceeded):
                    raise _waited_for(refusal, began) from error
                if not another_node_may_do(error):
                    raise
                failed.append(error)
        refusal = failed[0] if len(failed) == 1 else _nobody(failed)
        wait, now = loading_wait(failed, random.random()), time.monotonic()
        if wait is None:
            raise refusal
        if until - now < LEAST_S:
            raise _waited_for(refusal, began)
        logger.log(level, "waits for a node that is loading: %s", refusal)
        level = logging.DEBUG
        await pause(min(wait, (until - now) / 2))


def _waited_for(refusal: SwarmdError, began: float) -> SwarmdError:
    refusal.add_note(f"{time.monotonic() - began:.3g} s were waited for it")
    return refusal


def _nobody(failed: Sequence[SwarmdError]) -> SwarmdError:
    listed = "; ".join(str(error) for error in failed)
    return PeerUnreachable(f"none of {len(failed)} nodes could do it: {listed}")
