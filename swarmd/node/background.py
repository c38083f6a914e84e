"""Work that may block for long, on a thread of its own, that nobody has to wait for at the end.

A silent hub or a dead disk holds a thread that nothing can wake, and the loop's own pool is waited
for when the loop ends. What is done there is the caller's business.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_background(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return or raise what the function does. Cancelled, leave it behind: it runs on."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def work() -> None:
        try:
            outcome.set_result(function(*args, **kwargs))
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=work, name=f"background-{function.__name__}", daemon=True).start()
    return await asyncio.wrap_future(outcome)
