"""The way between two nodes spoils what passes: it flips bytes, or says everything twice."""

from __future__ import annotations

from bench.chaos.lab import Lab
from bench.chaos.proxies import Duplicating, Flipping, Proxy
from bench.chaos.verdict import Bar, Findings

ROUNDS = 3


async def flip(lab: Lab) -> Findings:
    """Bytes between peers are flipped: links break, frames are refused, and no token is wrong."""
    return await _through(lab, Flipping(lab.settings.seed))


async def duplicate(lab: Lab) -> Findings:
    """Every message between peers comes twice: the second one changes nothing."""
    return await _through(lab, Duplicating())


async def _through(lab: Lab, proxy: Proxy) -> Findings:
    """Put a node behind the proxy in the place of one of the two that hold the middle."""
    await lab.revive()
    work = lab.work(tokens=2 * lab.settings.tokens)
    found = Findings(calm=await lab.calm(work), runs=0, counted=0)
    replaced = next(n for n in lab.nodes.nodes if "3:6" in n.args)
    replaced.kill()
    await proxy.listen()
    extra = lab.nodes.add("3:6", "--listen", proxy.target, "--announce", proxy.address)
    lab.nodes.nodes.remove(replaced)
    try:
        await lab.ready()
        extra.address = proxy.target  # clients' streams are not what is spoilt here
        await lab.settle()
        for _ in range(lab.settings.runs or ROUNDS):
            proxy.active = True
            async with lab.load(work) as load:
                await load.all_have(1)
                load.mark_all()
            found.streams += load.streams
            found.runs += 1
        proxy.active = False
    finally:
        extra.kill()
        lab.nodes.nodes.remove(extra)
        lab.nodes.nodes.append(replaced)
        await proxy.close()
    found.counted = proxy.spoilt
    found.facts = {"spoilt": proxy.spoilt, "bytes_through": proxy.passed}
    found.bars = [Bar("failed_requests", sum(bool(s.error) for s in found.streams), 0)]
    return found
