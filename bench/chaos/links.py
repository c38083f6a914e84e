"""The ways between all nodes spoil what passes: they flip bytes, or say everything twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack

from bench.chaos.lab import Lab
from bench.chaos.proxies import Duplicating, Flipping, Proxy
from bench.chaos.verdict import Bar, Findings

ROUNDS = 3


async def flip(lab: Lab) -> Findings:
    """Bytes between peers are flipped: links break, frames are refused, and no token is wrong."""
    return await _through(lab, lambda address: Flipping(address, lab.settings.seed))


async def duplicate(lab: Lab) -> Findings:
    """Every message between peers comes twice: the second one changes nothing."""
    return await _through(lab, Duplicating)


async def _through(lab: Lab, make: Callable[[str], Proxy]) -> Findings:
    """Put a proxy before each node: of two that are linked, either may have dialled the other."""
    await lab.revive()
    # Streams of clients are not what is spoilt here: they stay where they began.
    work = lab.work(tokens=2 * lab.settings.tokens, allow_redirect=False)
    found = Findings(calm=await lab.calm(work), runs=0)
    proxies = [make(node.address) for node in lab.nodes.nodes]
    usual = [node.args for node in lab.nodes.nodes]
    async with AsyncExitStack() as stack:
        for node in lab.nodes.nodes:
            node.kill()
        for node, proxy in zip(lab.nodes.nodes, proxies, strict=True):
            await proxy.listen()
            stack.push_async_callback(proxy.close)
            node.args += ("--listen", proxy.target, "--announce", proxy.address)
            node.restart()
        await lab.ready()
        for node, proxy in zip(lab.nodes.nodes, proxies, strict=True):
            node.address = proxy.target
        await lab.settle()
        for _ in range(lab.settings.runs or ROUNDS):
            _activate(proxies, True)
            async with lab.load(work) as load:
                await load.all_have(1)
                load.mark_all()
            found.streams += load.streams
            found.runs += 1
        _activate(proxies, False)
        for node, args in zip(lab.nodes.nodes, usual, strict=True):
            node.kill()
            node.args = args
    spoilt = sum(proxy.spoilt for proxy in proxies)
    found.counted = found.runs if spoilt else 0
    found.facts = {"spoilt": spoilt, "bytes_through": sum(proxy.passed for proxy in proxies)}
    found.bars = [Bar("failed_requests", sum(bool(s.error) for s in found.streams), 0)]
    return found


def _activate(proxies: list[Proxy], active: bool) -> None:
    for proxy in proxies:
        proxy.active = active
