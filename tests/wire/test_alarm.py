"""A sleep that is put off: nobody wakes up at the time that was set first."""

from __future__ import annotations

import asyncio
import time

from swarmd.wire.alarm import Alarm


async def test_who_sleeps_wakes_at_its_time() -> None:
    alarm, at = Alarm(), time.monotonic() + 0.02
    await alarm.sleep_until(at)
    assert alarm.at == at


async def test_a_sleep_that_is_put_off_goes_on_until_then() -> None:
    alarm = Alarm()
    first = time.monotonic() + 0.3  # far enough for what is done until then
    sleep = asyncio.create_task(alarm.sleep_until(first))
    await asyncio.sleep(0)
    alarm.put_off(first + 0.2, least=0.1)
    await sleep
    assert alarm.at == first + 0.2
    assert time.monotonic() >= first + 0.19  # uvloop counts whole milliseconds


async def test_a_small_move_is_not_worth_it_and_nobody_asleep_is_woken_by_none() -> None:
    alarm = Alarm()
    alarm.put_off(time.monotonic() + 60, least=0.0)  # nobody sleeps
    first = time.monotonic() + 0.3
    sleep = asyncio.create_task(alarm.sleep_until(first))
    await asyncio.sleep(0)
    alarm.put_off(first + 0.01, least=0.1)
    await sleep
    assert alarm.at == first
