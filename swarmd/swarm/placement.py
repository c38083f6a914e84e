"""Which span a node should serve: what is missing first, then what is thinnest.

A pure function over the view. How many blocks fit a node's memory, and moving it, are the node's
business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from swarmd.core.errors import ConfigError
from swarmd.core.peers import Announcement, NodeState
from swarmd.core.span import Span, missing_blocks
from swarmd.swarm.view import DEFAULT_BLOCK_MS, View, block_ms

MOVE_GAIN = 1.3
"""A node moves only if the slowest blocks get this much faster: loading costs minutes."""


def choose_span(
    view: View,
    model: str,
    num_blocks: int,
    max_blocks: int,
    peer_id: str = "",
    current: Span | None = None,
) -> Span:
    """Return the span that a node with room for `max_blocks` blocks should serve.

    Without `current` every other node that serves or loads counts as it stands. With `current`, the
    node asks whether it should move: it stays unless that closes more of a gap, or makes the
    slowest blocks `MOVE_GAIN` times faster; of nodes that load the same blocks lower ids stay.
    So nodes that start at the same moment announce, wait until they see each other, and ask again.

    Raises ConfigError if not even one block fits.
    """
    if max_blocks < 1:
        raise ConfigError(
            f"not one block of {model} fits: raise the memory limit or choose --dtype bfloat16"
        )
    length = min(max_blocks, num_blocks)
    if current is None:
        others = [peer for peer in view.placed(model) if peer.peer_id != peer_id]
        return _best(_throughput(others, num_blocks), length, peer_id)
    own = view.peer(peer_id)
    if own is not None and own.state is NodeState.SERVING:
        return _move_while_serving(view, model, num_blocks, length, own)
    totals = _totals_once_loaded(view, model, num_blocks, peer_id)
    return _stay_or_move(totals, current, length, peer_id, DEFAULT_BLOCK_MS)


def _move_while_serving(
    view: View, model: str, num_blocks: int, length: int, own: Announcement
) -> Span:
    """Return where to serve; of all nodes that would move, only the one with the highest id does.

    Two that left the same span at once for the same gap would only swap the gaps.
    """
    placed = view.placed(model)

    def choice(peer: Announcement, length: int) -> Span:
        totals = _throughput([other for other in placed if other is not peer], num_blocks)
        return _stay_or_move(totals, peer.span, length, peer.peer_id, block_ms(peer))

    serving = [peer for peer in view.serving(model) if peer.peer_id > own.peer_id]
    wanted = choice(own, length)
    if wanted != own.span and any(choice(p, len(p.span)) != p.span for p in serving):
        return own.span
    return wanted


def _stay_or_move(
    totals: Sequence[float], current: Span, length: int, peer_id: str, block_ms: float
) -> Span:
    """Return `current`, or a span that is clearly better; `totals` leave this node out."""
    best = _best(totals, length, peer_id)
    gain = _newly_covered(totals, best) - _newly_covered(totals, current)
    if gain > 0:
        return best
    slowest_there = min(_added(totals, best, block_ms))
    slowest_here = min(_added(totals, current, block_ms))
    return best if slowest_there > MOVE_GAIN * slowest_here > 0 else current


def _best(throughput: Sequence[float], length: int, peer_id: str) -> Span:
    """Return the best window of `length` blocks, given tokens per second of each block."""
    starts = range(len(throughput) - length + 1)
    windows = [Span(start, start + length) for start in starts]
    if min(throughput) > 0:
        return _thinnest(windows, throughput, peer_id)
    gained = [_newly_covered(throughput, window) for window in windows]
    most = max(gained)
    closing = [w for w, gain in zip(windows, gained, strict=True) if gain == most]
    # What remains missing should stay in few pieces, since a node covers contiguous blocks only.
    fewest = min(_pieces_left(throughput, window) for window in closing)
    closing = [w for w in closing if _pieces_left(throughput, w) == fewest]
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
    edges = _edges(throughput)
    aligned = [w for w in equal if w.start in edges] or [w for w in equal if w.end in edges]
    choice = aligned or equal
    return choice[int(peer_id or "0", 16) % len(choice)]


def _edges(throughput: Sequence[float]) -> set[int]:
    """Return where throughput changes, which is where spans begin and end."""
    inner = {b for b in range(1, len(throughput)) if throughput[b - 1] != throughput[b]}
    return inner | {0, len(throughput)}


def _newly_covered(throughput: Sequence[float], window: Span) -> int:
    return sum(throughput[block] == 0 for block in range(window.start, window.end))


def _pieces_left(throughput: Sequence[float], window: Span) -> int:
    covered = [Span(b, b + 1) for b, value in enumerate(throughput) if value > 0]
    return len(missing_blocks([*covered, window], len(throughput)))


def _added(totals: Sequence[float], window: Span, block_ms: float) -> list[float]:
    """Return the totals with one more peer on `window`, each block taking `block_ms` there."""
    more = 1000 / (block_ms * len(window))
    return [value + more * (block in window) for block, value in enumerate(totals)]


def _throughput(peers: Iterable[Announcement], num_blocks: int) -> list[float]:
    """Return for each block the tokens per second of all peers that hold it."""
    totals = [0.0] * num_blocks
    for peer in peers:
        totals = _added(totals, peer.span, block_ms(peer))
    return totals


def _totals_once_loaded(view: View, model: str, num_blocks: int, peer_id: str) -> list[float]:
    """Return throughput as it will be once nodes that load the same blocks have made way.

    In the order of ids, each loading node stays if it covers as much as it could, and goes where
    `choose_span` sends it otherwise; all nodes that see the same conclude the same.
    """
    placed = [peer for peer in view.placed(model) if peer.peer_id != peer_id]
    totals = _throughput([p for p in placed if p.state is NodeState.SERVING], num_blocks)
    for peer in placed:
        if peer.state is NodeState.LOADING and peer.peer_id < peer_id:
            length = min(len(peer.span), num_blocks)
            span = _stay_or_move(totals, peer.span, length, peer.peer_id, DEFAULT_BLOCK_MS)
            totals = _added(totals, span, DEFAULT_BLOCK_MS)
    return totals
