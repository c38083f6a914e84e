"""Watches for notices that this machine is about to go, and has the node drain in time.

Where notices come from is `swarmd.node.notices`'s; draining is `swarmd.node.life`'s.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping

from swarmd.core.clock import Clock
from swarmd.core.errors import ConfigError, SwarmdError
from swarmd.node.notices import Aws, Azure, Command, File, Google, Notice, Source

log = logging.getLogger(__name__)

CLOUDS: Mapping[str, Callable[[Mapping[str, str]], Aws | Google | Azure]] = {
    "aws": Aws,
    "gcp": Google,
    "azure": Azure,
}
BACKOFF_CAP_S = 30.0
MARGIN_S = 5.0
"""Before the deadline the node is gone; a third of the time at most."""


async def watch(
    setting: str,
    env: Mapping[str, str],
    follow: Callable[[Notice], Awaitable[bool]],
) -> None:
    """Look until `follow` says that it has followed a notice. Nothing is asked when it is off."""
    source = await find_source(setting, env)
    if source is None:
        return
    failures, advised = 0, False
    while True:
        pause = source.poll_s
        try:
            notice = await source.look()
            failures = 0
            if notice is not None and await follow(notice):
                return
            if notice is not None and not advised:
                advised = True
                log.info("notice not followed yet notice=%s", notice.what)
        except SwarmdError as error:
            failures += 1
            log.warning("no word on preemption error=%s", error)
            pause = min(BACKOFF_CAP_S, pause * 2.0 ** min(failures, 10))
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))


async def find_source(setting: str, env: Mapping[str, str]) -> Source | None:
    """Return whom to ask; with `auto` the cloud that answers, None if none does."""
    kind, _, rest = setting.partition(":")
    if kind == "file":
        return File(rest)
    if kind == "exec":
        return Command(rest)
    if kind in CLOUDS:
        return CLOUDS[kind](env)
    if kind != "auto":
        return None
    clouds = [make(env) for make in CLOUDS.values()]
    answers = await asyncio.gather(*map(_answers, clouds))
    found = next((c for c, yes in zip(clouds, answers, strict=True) if yes), None)
    if found is None:
        log.info("no cloud's metadata service answers: preemption is not watched for")
    return found


async def _answers(cloud: Aws | Google | Azure) -> bool:
    try:
        return await cloud.answers()
    except SwarmdError:
        return False


def time_left(notice: Notice, usual: float, clock: Clock) -> float:
    """Return how long a drain may take, in seconds; `usual` where the notice does not say."""
    if notice.deadline is None:
        return usual
    left = max(0.0, notice.deadline - clock.wall())
    return left - min(MARGIN_S, left / 3)


def check(setting: str) -> None:
    """Raise ConfigError for a command line that cannot be read."""
    kind, _, rest = setting.partition(":")
    if kind == "exec":
        try:
            Command(rest)
        except ValueError as error:
            raise ConfigError(f"--preemption {setting}: {error}") from None
