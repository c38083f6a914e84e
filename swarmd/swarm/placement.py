"""Which span a node that starts should serve: what is missing first, then what is thinnest.

A pure function over the view. How many blocks fit a node's memory is the node's business, whether
one that serves should move is `swarm.rebalance`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from swarmd.core.errors import ConfigError
from swarmd.core.peers import Announcement, NodeState
from swarmd.core.span import Span, missing_blocks
from swarmd.swarm.view import DEFAULT_BLOCK_MS, View, block_ms

MOVE_GAIN = 1.3
"""What is slowest must get this much faster by a move: loading costs minutes."""


def choose_span(
    view: View,
    model: str,
    num_blocks: int,
    max_blocks: int,
    peer_id: str = "",
    current: Span | None = None,
) -> Span:
    """Return the span that a node with room for `max_blocks` blocks should serve.

    Without `current` every other node that serves or loads counts as it stands. With `current`,
    which it has announced as what it loads, the node asks again: it keeps that unless another span
    closes more of a gap, or makes the slowest blocks `MOVE_GAIN` times faster; of nodes that load
    the same blocks lower ids keep them. So nodes that start at the same moment announce, wait until
    they see each other, and ask again.

    Raises ConfigError if not even one block fits.
    """
    if max_blocks < 1:
        raise ConfigError(
            f"not one block of {model} fits: raise the memory limit or choose --dtype bfloat16"
        )
    length = min(max_blocks, num_blocks)
    if current is None:
        others = [peer for peer in view.placed(model) if peer.peer_id != peer_id]
        return best_window(throughputs(others, num_blocks), length, peer_id)
    totals = _totals_once_loaded(view, model, num_blocks, peer_id)
    return _stay_or_move(totals, current, length, peer_id, DEFAULT_BLOCK_MS)


def _stay_or_move(
    totals: Sequence[float], current: Span, length: int, peer_id: str, block_ms: float
) -> Span:
    """Return `current`, or a span that is clearly better; `totals` leave this node out."""
    best = best_window(totals, length, peer_id)
    gain = newly_covered(totals, best) - newly_covered(totals, current)
    if gain > 0:
        return best
    slowest_there = min(added(totals, best, block_ms))
    slowest_here = min(added(totals, current, block_ms))
    return best if slowest_there > MOVE_GAIN * slowest_here > 0 else current


def best_window(throughput: Sequence[float], length: int, peer_id: str) -> Span:
    """Return the best window of `length` blocks, given tokens per second of each block."""
    starts = range(len(throughput) - length + 1)
    windows = [Span(start, start + length) for start in starts]
    if min(throughput) > 0:
        return _thinnest(windows, throughput, peer_id)
    gained = [newly_covered(throughput, window) for window in windows]
    most = max(gained)
    closing = [w for w, gain in zip(windows, gained, strict=True) if gain == most]
    # What remains missing should stay in few pieces, since a node covers contiguous blocks only.
    fewest = min(pieces_left(throughput, window) for window in closing)
    closing = [w for w in closing if pieces_left(throughput, w) == fewest]
    if most == sum(value == 0 for value in throughput):
        return _thinnest(closing, throughput, peer_id)
    return closing[0]


def _thinnest(windows: Sequence[Span], throughput: Sequence[float], peer_id: str) -> Span:
    """Return the window over the slowest blocks; equal ones are shared out by peer id.

    As in Petals: compare the sorted throughputs of the windows, slowest block first.
    """
    ranked = {w: sorted(round(throughput[b], 6) for b in range(w.start, w.end)) for w in windows}
    slowest = min(ranked.values())
    equal = [window for window in windows if ranked[window] == slowest]
    # Windows that begin or end where others do leave routes with fewer hops.
    ends = edges(throughput)
    aligned = [w for w in equal if w.start in ends] or [w for w in equal if w.end in ends]
    choice = aligned or equal
    return choice[int(peer_id or "0", 16) % len(choice)]


def edges(throughput: Sequence[float]) -> set[int]:
    """Return where throughput changes, which is where spans begin and end."""
    inner = {b for b in range(1, len(throughput)) if throughput[b - 1] != throughput[b]}
    return inner | {0, len(throughput)}


def newly_covered(throughput: Sequence[float], window: Span) -> int:
    return sum(throughput[block] == 0 for block in range(window.start, window.end))


def pieces_left(throughput: Sequence[float], window: Span) -> int:
    covered = [Span(b, b + 1) for b, value in enumerate(throughput) if value > 0]
    return len(missing_blocks([*covered, window], len(throughput)))


def added(totals: Sequence[float], window: Span, block_ms: float) -> list[float]:
    """Return the totals with one more peer on `window`, each block taking `block_ms` there."""
    more = 1000 / (block_ms * len(window))
    return [value + more * (block in window) for block, value in enumerate(totals)]


def throughputs(peers: Iterable[Announcement], num_blocks: int) -> list[float]:
    """Return for each block the tokens per second of all peers that hold it."""
    totals = [0.0] * num_blocks
    for peer in peers:
        totals = added(totals, peer.destination, block_ms(peer))
    return totals


def _totals_once_loaded(view: View, model: str, num_blocks: int, peer_id: str) -> list[float]:
    """Return throughput as it will be once nodes that load the same blocks have made way.

    In the order of ids, each loading node stays if it covers as much as it could, and goes where
    `choose_span` sends it otherwise; all nodes that see the same conclude the same.
    """
    placed = [peer for peer in view.placed(model) if peer.peer_id != peer_id]
    totals = throughputs([p for p in placed if _stands(p)], num_blocks)
    for peer in placed:
        if not _stands(peer) and peer.peer_id < peer_id:
            length = min(len(peer.span), num_blocks)
            span = _stay_or_move(totals, peer.span, length, peer.peer_id, DEFAULT_BLOCK_MS)
            totals = added(totals, span, DEFAULT_BLOCK_MS)
    return totals


def _stands(peer: Announcement) -> bool:
    """Whether it makes way for nobody: it serves, or is on a move that others have agreed to."""
    return peer.state is not NodeState.LOADING or peer.plan is not None
