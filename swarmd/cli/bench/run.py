"""One run of a benchmark: its time budget, its progress, its watch over the machine, its swarms.

What is measured is the scenarios'.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from swarmd.cli.bench import models
from swarmd.cli.bench.others import Others, Stretch
from swarmd.cli.bench.settings import Settings
from swarmd.core.config import KEYS, flag_name
from swarmd.core.errors import SwarmdError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from swarmd.cli.local_swarm import LocalNode, LocalSwarm
    from swarmd.client import AsyncClient

T = TypeVar("T")
READY_TIMEOUT_S = 300.0
SEEN_TIMEOUT_S = 60.0
PATIENCE = 5
"""So often is something repeated that others disturb."""
NO_CACHE = "--no-prefix-cache"
LOOK_S = 1.0
"""How long the machine is watched before anything is started."""
BASELINE_SHARE = 0.35
"""Of the budget, kept for baselines where there are any."""


class Run:
    """What a scenario is handed."""

    def __init__(self, settings: Settings, progress: Steps) -> None:
        self.settings = settings
        self.others = Others()
        self._progress = progress
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    @property
    def left_s(self) -> float:
        """What is left of the budget."""
        return self.settings.budget_s - self.seconds

    def affords(self, seconds: float, *, baselines_follow: bool = True) -> bool:
        """Whether a measurement of that length fits, with what the baselines need."""
        kept = BASELINE_SHARE if baselines_follow and self.settings.baselines else 0.0
        return seconds < self.left_s - kept * self.settings.budget_s

    def step(self, text: str) -> None:
        """Say what is done now."""
        self._progress.step(text)

    def plan(self, steps: int) -> None:
        """Say how many steps there are to come."""
        self._progress.plan(steps)

    def look(self) -> None:
        """Watch the machine while nothing of ours runs. Raises SwarmdError when it is busy."""
        if self.settings.allow_busy:
            return
        idle = Others()
        with idle.watched():
            time.sleep(LOOK_S)
        self.refuse_if_busy(idle.share, "before the start")

    def refuse_if_busy(self, share: float, when: str) -> None:
        """Raise SwarmdError if others take too much of the machine."""
        limit = self.settings.max_busy
        if share > limit and not self.settings.allow_busy:
            raise SwarmdError(
                f"other processes took {share:.0%} of the machine {when}, more than the "
                f"{limit:.0%} with which a figure means anything; stop them, or add --allow-busy "
                "to have the result marked"
            )

    def disturbed(self, stretch: Stretch) -> bool:
        """Whether others took too much in a stretch; if so, it is not counted."""
        if stretch.share <= self.settings.max_busy or self.settings.allow_busy:
            return False
        self.others.forget(stretch)
        return True

    def undisturbed(self, what: str, work: Callable[[], T]) -> T:
        """Do what cannot be cut into rounds; once more if others took too much, if time allows."""
        self.step(what)
        began = self.seconds
        with self.others.watched() as stretch:
            found = work()
        if 2 * self.seconds - began > self.settings.budget_s or not self.disturbed(stretch):
            return found
        self.step(f"{what}, once more: others disturbed it")
        with self.others.watched():
            return work()

    def give_up_if_busy(self, stretch: Stretch, times: int, when: str) -> None:
        """Raise SwarmdError when something was disturbed too often."""
        if times >= PATIENCE:
            self.refuse_if_busy(stretch.share, when)

    @staticmethod
    def without_cache() -> tuple[str, ...]:
        """Flags with which prompts that come again are computed again; none if they always are."""
        return (NO_CACHE,) if NO_CACHE in map(flag_name, KEYS) else ()

    def model(self) -> models.Model:
        """Return the model; making it may take a minute, once per machine."""
        self.step(f"model {self.settings.model}")
        return models.find(self.settings.model, self.settings.dtype)

    @contextmanager
    def swarm(
        self,
        model: models.Model,
        spans: Sequence[str],
        *flags: str,
        kv_memory: str = "1GiB",
        each: Sequence[Sequence[str]] = (),
    ) -> Iterator[LocalSwarm]:
        """Start daemons with these spans; they may not be ready yet.

        `flags` are for all of them, `each` holds those of each one.
        """
        from swarmd.cli.local_swarm import LocalSwarm

        self.step(f"{len(spans)} nodes: blocks {', '.join(spans)}")
        threads = str(self.settings.threads)
        common = ("--dtype", model.dtype, "--kv-memory", kv_memory, "--log-level", "warning")
        with LocalSwarm(
            str(model.directory),
            () if each else spans,
            flags=(*common, "--threads", threads, *flags),
            env={"OMP_NUM_THREADS": threads},
        ) as nodes:
            for span, own in zip(spans, each, strict=False):
                nodes.add(span, *own)
            yield nodes

    def wait_ready(self, nodes: LocalSwarm) -> None:
        """Wait until all daemons serve and see each other. Raises SwarmdError."""
        nodes.wait_ready(READY_TIMEOUT_S)
        asyncio.run(_see_each_other(nodes.nodes))


async def _see_each_other(nodes: Sequence[LocalNode]) -> None:
    """Wait until every node has all others in its view."""
    from swarmd.client import AsyncClient

    pids = {node.pid for node in nodes}
    end = time.monotonic() + SEEN_TIMEOUT_S
    for node in nodes:
        async with AsyncClient(node.address) as client:
            while not pids <= await _serving(client):
                if time.monotonic() > end:
                    raise SwarmdError(
                        f"the node at {node.address} did not see all {len(nodes)} nodes within "
                        f"{SEEN_TIMEOUT_S:g} s; its log ends: {node.log()[-500:]}"
                    )
                await asyncio.sleep(0.05)


async def _serving(client: AsyncClient) -> set[int]:
    status = await client.status()
    return {peer.pid for peer in status.peers if peer.state == "serving"}


class Steps:
    """A progress bar over the steps on a terminal, a line per step on stderr elsewhere."""

    def __init__(self, name: str, *, quiet: bool) -> None:
        self._name = name
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._done = self._total = 0

    def __enter__(self) -> Steps:
        if not self._quiet and sys.stderr.isatty():
            self._bar = _new_bar()
            self._bar.start()
            self._task = self._bar.add_task(self._name, total=None)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def plan(self, steps: int) -> None:
        """Say how many more steps there are; should there be more, the bar grows."""
        self._total = self._done + steps

    def step(self, text: str) -> None:
        """Say what is done now."""
        self._done += 1
        self._total = max(self._total, self._done)
        line = f"{self._name}: {text}"
        if self._bar is not None and self._task is not None:
            done = self._done - 1
            self._bar.update(self._task, description=line, completed=done, total=self._total)
        elif not self._quiet:
            print(line, file=sys.stderr, flush=True)


def _new_bar() -> Progress:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
