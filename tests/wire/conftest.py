"""Every async test here runs on asyncio's own loop and on uvloop, and must leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
import uvloop
from hypothesis import settings

# A busy machine is no finding.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_asyncio_loop_factories(config: object, item: object) -> dict[str, Callable[[], Any]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest_asyncio.fixture
async def quiet(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """No exception is left for the event loop to report, and nothing is logged as an error."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    yield
    gc.collect()
    await asyncio.sleep(0)
    assert not reported
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
