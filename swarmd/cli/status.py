"""`swarmd status`: the swarm as one node sees it, as a table or as JSON.

What is in it is the node's business (`swarmd.v1.StatusReply`).
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from swarmd.cli import console
from swarmd.core.errors import SwarmdError
from swarmd.core.peers import qualified

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

    from swarmd.client import Client
    from swarmd.core.results import ModelStatus, PeerStatus, SwarmStatus

PIPED_WIDTH = 240
"""Columns where stdout is no terminal: nothing is cut off that somebody may search for."""


@console.verb
def status(
    node: console.NodeOption = console.DEFAULT_NODE,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until interrupted.")] = False,
    interval: Annotated[
        float, typer.Option("--interval", min=0.05, metavar="SECONDS", help="With --watch.")
    ] = 1.0,
    timeout: console.TimeoutOption = None,
    as_json: console.JsonOption = False,
) -> int | None:
    """Show who serves which blocks, and what is missing."""
    from swarmd.client import Client

    with Client(node, timeout=timeout) as client:
        first = client.status()
        if not watch:
            show(first, as_json=as_json)
        elif as_json or not sys.stdout.isatty():
            _watch_lines(client, first, interval, as_json=as_json)
        else:
            _watch_screen(client, first, interval)
    return None


def show(swarm: SwarmStatus, *, as_json: bool) -> None:
    """Print it once."""
    if as_json:
        console.print_json(swarm.as_dict())
        return
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPED_WIDTH
    Console(width=width, highlight=False).print(render(swarm))


def _watch_lines(client: Client, swarm: SwarmStatus, interval: float, *, as_json: bool) -> None:
    while True:
        show(swarm, as_json=as_json)
        time.sleep(interval)
        swarm = client.status()


def _watch_screen(client: Client, swarm: SwarmStatus, interval: float) -> None:
    """Redraw in place; a node that does not answer is named while the last answer stays."""
    from rich.console import Group
    from rich.live import Live

    with Live(render(swarm), auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            try:
                swarm = client.status()
                live.update(render(swarm), refresh=True)
            except SwarmdError as error:
                live.update(Group(render(swarm), f"no answer: {error}"), refresh=True)


def render(swarm: SwarmStatus) -> Group:
    """Return the table of peers and a line per model."""
    from rich.console import Group
    from rich.text import Text

    names = labels(swarm.models)
    lines = [
        Text(model_line(model, names[model.digest]), "" if not model.missing else "red")
        for model in swarm.models
    ]
    return Group(_table(swarm, names), *(lines or [Text("no model is served")]))


def labels(models: Sequence[ModelStatus]) -> dict[str, str]:
    """Return what to call each model, by digest: its name, and more where others share it."""
    count = Counter(model.name for model in models)
    return {
        model.digest: qualified(model.name, model.digest) if count[model.name] > 1 else model.name
        for model in models
    }


def _table(swarm: SwarmStatus, names: Mapping[str, str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    several = len(names) > 1
    for column in ("peer", "address", *["model"] * several, "blocks", "state", "device", "dtype"):
        table.add_column(column, overflow="fold")
    for column in ("sessions", "KV used", "tokens/s"):
        table.add_column(column, justify="right")
    for peer in sorted(swarm.peers, key=_by_blocks):
        mark = "*" if peer.peer == swarm.peer else ""
        cells = [peer.peer[:12] + mark, peer.address]
        cells += [names.get(peer.model_digest, peer.model)] * several
        cells += [
            str(peer.blocks or "-"),
            _state(peer),
            peer.device,
            peer.dtype,
            str(peer.sessions),
            kv_used(peer),
        ]
        table.add_row(*map(Text, [*cells, f"{peer.tokens_per_s:.1f}"]))
    return table


def _state(peer: PeerStatus) -> str:
    if peer.plan:
        return f"{peer.state}, to {peer.plan}"
    return f"{peer.state}, starved" if peer.starves else peer.state


def _by_blocks(peer: PeerStatus) -> tuple[str, str, int, int, str]:
    start, end = (peer.blocks.start, peer.blocks.end) if peer.blocks else (1 << 30, 0)
    return peer.model, peer.model_digest, start, end, peer.peer


def kv_used(peer: PeerStatus) -> str:
    """Return `"12% of 4.0 GiB"`."""
    total = peer.kv_total_bytes
    if not total:
        return "-"
    used = 1 - min(peer.kv_free_bytes, total) / total
    return f"{used:.0%} of {_gib(total)}"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def model_line(model: ModelStatus, name: str) -> str:
    """Return what of a model can be computed, in one line; `name` is what to call it."""
    covered = f"{model.covered_blocks} of {model.num_blocks} blocks"
    gaps = ", ".join(f"{start}:{end}" for start, end in model.missing)
    rest = f"missing {gaps}" if gaps else f"replicas {model.replicas}"
    thin = ", ".join(f"{start}:{end}" for start, end in model.thin)
    return f"{name}: {covered}, {rest}" + (f", only one peer for {thin}" if thin else "")
