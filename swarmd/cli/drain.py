"""`swarmd drain`: one node finishes its sessions, refuses new ones, and exits.

Whether it may leave is the node's decision.
"""

from __future__ import annotations

from typing import Annotated

import typer

from swarmd.cli import console


@console.verb
def drain(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The node that is to go.")],
    force: Annotated[
        bool, typer.Option("--force", help="Even if nobody else holds some of its blocks.")
    ] = False,
    timeout: console.TimeoutOption = None,
    as_json: console.JsonOption = False,
) -> int | None:
    """Ask a node to finish what it is doing and leave the swarm."""
    from swarmd.client import Client

    with Client(address, timeout=timeout) as client:
        sessions = client.drain(force)
    if as_json:
        console.print_json({"address": address, "sessions": sessions})
    else:
        noun = "session" if sessions == 1 else "sessions"
        print(f"{address} drains and will exit: {sessions} {noun} to finish")
    return None
