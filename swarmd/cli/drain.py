"""`swarmd drain`: one node finishes its sessions, refuses new ones, and exits.

Whether it may leave is the node's decision.
"""

from __future__ import annotations

import re
from typing import Annotated

import typer

from swarmd.cli import console
from swarmd.core.errors import UsageError
from swarmd.core.peers import PEER_ID_HEX

_PEER = re.compile(rf"([0-9a-f]{{6,{PEER_ID_HEX}}})\*?", re.IGNORECASE)
"""A peer id or its beginning, as `swarmd status` shows it, with its mark of the node asked."""


@console.verb
def drain(
    peer: Annotated[
        str,
        typer.Argument(
            metavar="PEER",
            help="The node that is to go: HOST:PORT, or its id or the first 6 characters or more.",
        ),
    ],
    force: Annotated[
        bool, typer.Option("--force", help="Even if nobody else holds some of its blocks.")
    ] = False,
    node: console.NodeOption = console.DEFAULT_NODE,
    timeout: console.TimeoutOption = None,
    as_json: console.JsonOption = False,
) -> int | None:
    """Ask a node to finish what it is doing and leave the swarm.

    Where a peer id is given, --node is asked for its address.
    """
    from swarmd.client import Client

    found = _PEER.fullmatch(peer)
    address = _address_of(found[1].lower(), node, timeout) if found else peer
    with Client(address, timeout=timeout) as client:
        sessions = client.drain(force)
    if as_json:
        console.print_json({"address": address, "sessions": sessions})
    else:
        noun = "session" if sessions == 1 else "sessions"
        print(f"{address} drains and will exit: {sessions} {noun} to finish")
    return None


def _address_of(begin: str, node: str, timeout: float | None) -> str:
    """Look a peer up by how its id begins. Raises UsageError if that is not exactly one."""
    from swarmd.client import Client

    with Client(node, timeout=timeout) as client:
        peers = [peer for peer in client.status().peers if peer.peer.startswith(begin)]
    if not peers:
        raise UsageError(
            f"{node} knows no peer whose id begins with {begin}; `swarmd status` shows ids, and a "
            f"host of that name is meant by {begin}:PORT"
        )
    if len(peers) > 1:
        listed = ", ".join(f"{peer.peer} at {peer.address}" for peer in peers)
        raise UsageError(f"{len(peers)} peers have ids that begin with {begin}: {listed}")
    return peers[0].address
