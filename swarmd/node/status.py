"""What a node tells about itself and the swarm: the reply to `Status`, and its counters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.engine.kv_cache import KVBudget
from swarmd.node.coordinator import Coordinator
from swarmd.node.exchange import Exchange
from swarmd.node.executor import Executor
from swarmd.node.histogram import Histogram
from swarmd.node.host import StageHost
from swarmd.node.presence import Presence
from swarmd.node.routes import Routes
from swarmd.swarm.view import View
from swarmd.v1 import inference_pb2 as pb


@dataclass(slots=True)
class NodeStats:
    """What happened to the node as a whole since it started."""

    moves: int = 0
    """To other blocks, while it served."""
    moves_given_up: int = 0
    notices: int = 0
    """That its machine is about to go."""


class StatusReport:
    """Collects from the parts of one node."""

    def __init__(
        self,
        presence: Presence,
        coordinator: Coordinator,
        host: StageHost,
        executor: Executor,
        exchange: Exchange,
        budget: KVBudget,
        routes: Routes,
    ) -> None:
        self._presence = presence
        self._coordinator = coordinator
        self._exchange = exchange
        self._routes = routes
        self.node = NodeStats()
        self.serve_from(host, executor, budget)

    def serve_from(self, host: StageHost, executor: Executor, budget: KVBudget) -> None:
        """From now on these run the stage."""
        self._host, self._executor, self._budget = host, executor, budget

    def reply(self, *, microbatches: bool = False) -> pb.StatusReply:
        """Return the whole report."""
        reply = swarm_report(self._presence)
        for name, value in self.counters().items():  # first: what follows may take milliseconds
            reply.counters[name] = value
        if microbatches:
            reply.microbatches.extend(
                pb.Microbatch(**asdict(m)) for m in self._executor.log.latest()
            )
        return reply

    def counters(self) -> Mapping[str, float]:
        """Return this node's counters by name."""
        groups = {
            "node": asdict(self.node),
            "hop": asdict(self._host.table.counters),
            "coordinator": asdict(self._coordinator.stats),
            "compute": asdict(self._executor.stats),
            "link": asdict(self._exchange.stats),
        }
        values = {
            f"{g}_{name}": float(v) for g, group in groups.items() for name, v in group.items()
        }
        prefixes = self._host.table.prefixes
        values["hop_kv_total_bytes"] = float(self._budget.total_bytes)
        values["hop_kv_reserved_bytes"] = float(self._budget.used_bytes - prefixes.idle_bytes)
        values["hop_prefix_idle_bytes"] = float(prefixes.idle_bytes)
        values["hop_prefix_units"] = float(len(prefixes))
        values["hop_kept_bytes"] = float(prefixes.pinned_bytes)
        values["hop_kept_sessions"] = float(len(self._host.table.leases))
        values["hop_sessions"] = float(self.sessions)
        values["hop_copy_lag_positions"] = float(self._host.table.copies.lag)
        values["coordinator_sessions"] = float(len(self._coordinator))
        values["coordinator_waiting_sessions"] = float(self._coordinator.waiting)
        values["coordinator_suspected_peers"] = float(len(self._routes.suspected()))
        values["coordinator_demoted_peers"] = float(self._routes.demoted())
        values["node_cpu_s"] = time.process_time()
        values["compute_forward_cpu_s"] = self._executor.forward_cpu_s
        values["compute_queue_depth"] = float(self._executor.queue_depth)
        return values

    @property
    def gaps(self) -> Histogram:
        """Seconds between the tokens of sessions that are coordinated here."""
        return self._coordinator.gaps

    @property
    def first_tokens(self) -> Histogram:
        """Seconds that sessions that are coordinated here have waited for their first tokens."""
        return self._coordinator.first_tokens

    @property
    def sessions(self) -> int:
        """How many sessions run through this node."""
        return len(self._host.table.sessions)


def swarm_report(presence: Presence) -> pb.StatusReply:
    """Return the report without counters, as a node can give it that is still loading."""
    view = presence.view
    return pb.StatusReply(
        peer_id=presence.own_id,
        peers=[peer_status(peer) for peer in view.peers],
        models=[_model_status(view, model) for model in view.models],
    )


def _model_status(view: View, model: ModelInfo) -> pb.ModelStatus:
    replicas = view.replicas(model.digest)
    return pb.ModelStatus(
        name=model.name,
        digest=model.digest,
        num_blocks=model.num_blocks,
        covered_blocks=sum(count > 0 for count in replicas),
        replicas=min(replicas, default=0),
        missing=[pb.BlockRange(start=a, end=b) for a, b in view.missing(model.digest)],
        thin=[pb.BlockRange(start=a, end=b) for a, b in view.thin(model.digest)],
        max_model_len=model.max_model_len,
    )


def peer_status(a: Announcement) -> pb.PeerStatus:
    """Return one peer's line."""
    return pb.PeerStatus(
        peer_id=a.peer_id,
        address=a.address,
        start=a.span.start,
        end=a.span.end,
        state=NodeState(a.state).name.lower(),
        device=a.device,
        dtype=a.dtype,
        precision=a.precision,
        sessions=a.sessions,
        kv_total_bytes=a.kv_total_bytes,
        kv_free_bytes=a.kv_free_bytes,
        tokens_per_s=a.tokens_per_s,
        pid=a.pid,
        version=a.version,
        model=a.model.name,
        model_digest=a.model.digest,
        ragged=a.ragged,
        replay_exact=a.replay_exact,
        queue_depth=a.queue_depth,
        step_ms=a.step_ms,
        plan=pb.BlockRange(start=a.plan.start, end=a.plan.end) if a.plan else None,
        starves=a.starves,
    )
