"""A peer to be killed or stopped: `peer_process.py PEER_ID [ADDRESS_OF_A]`; prints its address."""

from __future__ import annotations

import asyncio
import sys

from wire_nodes import A, Node

from swarmd.core.frames import Close


async def main(peer_id: str, calls: str) -> None:
    async with Node(peer_id, {A: calls}) as node:
        print(node.address, flush=True)
        if calls:
            node.links.send(A, [Close(bytes(16), 1)])
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
