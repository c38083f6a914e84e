"""The counters of a node by the names that Prometheus gets, each with its help: one table.

Where the values come from is `swarmd.node.status`'s; metrics that are no counter of it are added by
`swarmd.node.metrics`.
"""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

LEFT_OUT = frozenset({"compute_alive_at"})
"""Counters that mean nothing elsewhere: a time by this machine's own clock."""


@dataclass(frozen=True, slots=True)
class Row:
    """One counter as Prometheus gets it."""

    counter: str
    """Its name in `StatusReport.counters`."""
    name: str
    """Less the prefix; one that ends in `_total` never falls."""
    help: str
    unit: float = 1.0
    """What the counter is multiplied by."""

    def family(self, value: float) -> Metric:
        """Return the metric with that value of the counter."""
        kind = CounterMetricFamily if self.name.endswith("_total") else GaugeMetricFamily
        return kind(f"swarmd_{self.name}", self.help, value * self.unit)


ROWS = tuple(
    Row(*row)
    for row in (
        # -- as a hop
        ("hop_sessions", "hop_sessions", "Sessions that hold KV here."),
        ("hop_opened", "hop_sessions_opened_total", "Sessions opened here."),
        (
            "hop_adopted",
            "hop_sessions_adopted_total",
            "Sessions opened anew with the KV they held here.",
        ),
        ("hop_refused", "hop_sessions_refused_total", "Sessions that were refused here."),
        ("hop_freed", "hop_sessions_freed_total", "Sessions that gave their KV back here."),
        ("hop_lapsed", "hop_sessions_lapsed_total", "Sessions given up after their deadline."),
        (
            "hop_orphaned",
            "hop_sessions_orphaned_total",
            "Sessions given up as no coordinator came back for them.",
        ),
        (
            "hop_compute_failed",
            "hop_sessions_compute_failed_total",
            "Sessions given up as a step could not be computed.",
        ),
        (
            "hop_memory_exhausted",
            "hop_sessions_memory_exhausted_total",
            "Sessions given up as the machine had no memory for a step.",
        ),
        (
            "hop_duplicates",
            "hop_duplicate_steps_total",
            "Steps, and KV of copies, that were held already.",
        ),
        ("hop_gaps", "hop_gaps_total", "Steps that came before what they follow."),
        ("hop_bad_steps", "hop_bad_steps_total", "Steps that broke a rule."),
        (
            "hop_stale_epochs",
            "hop_stale_epoch_frames_total",
            "Frames of routes that sessions have left.",
        ),
        (
            "hop_stale_rounds",
            "hop_stale_round_frames_total",
            "Frames from before a session's last rewind.",
        ),
        (
            "hop_wrong_sender",
            "hop_wrong_sender_frames_total",
            "Frames from peers whose place it was not.",
        ),
        (
            "hop_unknown_session",
            "hop_unknown_session_frames_total",
            "Frames of sessions that are not here.",
        ),
        (
            "hop_replayed_positions",
            "hop_replayed_positions_total",
            "Positions sent on out of the replay log.",
        ),
        (
            "hop_recomputed_positions",
            "hop_recomputed_positions_total",
            "Positions given up in rewinds, or that another hop had computed: so computed again.",
        ),
        (
            "hop_evicted_positions",
            "hop_replay_evicted_positions_total",
            "Positions dropped from replay logs for want of room.",
        ),
        (
            "hop_prefix_hit_positions",
            "hop_prefix_hit_positions_total",
            "Positions that sessions began with, as others had computed them.",
        ),
        ("hop_continued", "hop_sessions_continued_total", "Sessions that went on from a kept one."),
        (
            "hop_leases_ended",
            "hop_leases_ended_total",
            "Kept sessions whose time was over.",
        ),
        (
            "hop_prefix_evicted_positions",
            "hop_prefix_evicted_positions_total",
            "Shared positions dropped for want of room.",
        ),
        (
            "hop_copied_positions",
            "hop_copied_positions_total",
            "Positions whose KV was sent to peers that hold copies.",
        ),
        ("hop_copied_bytes", "hop_copied_bytes_total", "KV sent to peers that hold copies."),
        (
            "hop_copy_lag_positions",
            "hop_copy_lag_positions",
            "Positions computed here that copies of their KV do not hold yet.",
        ),
        (
            "hop_copy_gaps",
            "hop_copy_gaps_total",
            "KV for copies that did not follow what was held.",
        ),
        (
            "hop_converted_positions",
            "hop_converted_positions_total",
            "Positions whose KV came in another dtype than this stage computes in.",
        ),
        (
            "hop_taken_over",
            "hop_sessions_taken_over_total",
            "Sessions that went on here with KV that another hop had sent.",
        ),
        # -- memory
        ("hop_kv_total_bytes", "kv_capacity_bytes", "Memory for KV."),
        ("hop_kv_reserved_bytes", "kv_reserved_bytes", "KV memory reserved by sessions."),
        (
            "hop_prefix_idle_bytes",
            "kv_prefix_idle_bytes",
            "KV memory of shared prefixes that no session uses now.",
        ),
        ("hop_kept_bytes", "kv_kept_bytes", "KV memory of sessions that are kept, or are to be."),
        ("hop_kept_sessions", "kv_kept_sessions", "Sessions kept for those that go on from them."),
        ("hop_prefix_units", "kv_prefix_units", "Shared pieces of prompts whose KV is kept."),
        # -- as a coordinator
        ("coordinator_sessions", "coordinator_sessions", "Generations that run now."),
        (
            "coordinator_waiting_sessions",
            "coordinator_waiting_sessions",
            "Of these, the ones that stand in line for KV.",
        ),
        (
            "coordinator_sessions_started",
            "coordinator_generations_started_total",
            "Generations started here, resumed ones included.",
        ),
        (
            "coordinator_sessions_finished",
            "coordinator_generations_finished_total",
            "Generations that came to their end.",
        ),
        (
            "coordinator_sessions_failed",
            "coordinator_generations_failed_total",
            "Generations that ended in an error.",
        ),
        (
            "coordinator_resumed",
            "coordinator_generations_resumed_total",
            "Generations that came here after their coordinator was lost.",
        ),
        (
            "coordinator_tokens_emitted",
            "coordinator_tokens_emitted_total",
            "Tokens given to clients.",
        ),
        (
            "coordinator_repairs",
            "coordinator_repairs_total",
            "Routes to be mended: repairs begun.",
        ),
        (
            "coordinator_repairs_lost",
            "coordinator_repairs_lost_total",
            "Routes mended as a hop was lost or silent; this and the next ones by cause.",
        ),
        (
            "coordinator_repairs_slow",
            "coordinator_repairs_slow_total",
            "Routes mended as a hop was slow and another one could take its place.",
        ),
        (
            "coordinator_repairs_stalled",
            "coordinator_repairs_stalled_total",
            "Routes mended as no token came, and no hop was to blame.",
        ),
        (
            "coordinator_repairs_capacity",
            "coordinator_repairs_capacity_total",
            "Routes mended as a hop had no room for the session any more.",
        ),
        (
            "coordinator_repairs_failed",
            "coordinator_repairs_failed_total",
            "Routes mended as a hop could not go on with the session.",
        ),
        (
            "coordinator_handoffs",
            "coordinator_handoffs_total",
            "Hops whose KV was handed off to another one.",
        ),
        (
            "coordinator_moved",
            "coordinator_generations_moved_total",
            "Generations left to another coordinator, as this node leaves.",
        ),
        (
            "coordinator_precision_changes",
            "coordinator_precision_changes_total",
            "Repairs and handoffs that found no peer of the same precision for some blocks.",
        ),
        (
            "coordinator_standbys_given_up",
            "coordinator_standbys_given_up_total",
            "Second copies of hops' KV given up as they lagged too far behind.",
        ),
        (
            "coordinator_attempts",
            "coordinator_open_attempts_total",
            "Times that sessions were opened on hops.",
        ),
        (
            "coordinator_recomputed_positions",
            "coordinator_recomputed_positions_total",
            "Positions that any hop was to compute once more, for repairs and resumptions.",
        ),
        (
            "coordinator_suspected_peers",
            "suspected_peers",
            "Peers whose link broke lately and that have not been heard of since.",
        ),
        (
            "coordinator_demoted_peers",
            "demoted_peers",
            "Peers that failed or were slow, so that others go before them for a while.",
        ),
        # -- the compute thread
        (
            "compute_queue_depth",
            "compute_queue_depth",
            "Sessions whose step waits to be computed, roughly.",
        ),
        (
            "compute_queue_wait_s",
            "compute_queue_wait_seconds_total",
            "Time that steps have waited, all together.",
        ),
        (
            "compute_held_s",
            "compute_held_seconds_total",
            "Time that microbatches have waited for sessions about to come.",
        ),
        ("compute_busy_s", "compute_busy_seconds_total", "Time spent in forward passes."),
        (
            "compute_forward_cpu_s",
            "compute_forward_cpu_seconds_total",
            "CPU time of the compute thread in forward passes.",
        ),
        (
            "compute_step_ms",
            "compute_step_seconds",
            "What a decode step of one session takes.",
            1e-3,
        ),
        (
            "compute_prefill_ms",
            "compute_prefill_token_seconds",
            "What a position of a prompt takes, computed with many others.",
            1e-3,
        ),
        (
            "compute_groups",
            "compute_groups",
            "Microbatches into which the decoding sessions fall at the moment.",
        ),
        ("compute_steps", "compute_steps_total", "Session steps computed."),
        ("compute_decodes", "compute_decode_steps_total", "Steps of one position computed."),
        ("compute_tokens", "compute_positions_total", "Positions computed."),
        ("compute_microbatches", "compute_microbatches_total", "Forward passes."),
        (
            "compute_decode_microbatches",
            "compute_decode_microbatches_total",
            "Microbatches with steps of one position in them.",
        ),
        # -- the node as a whole
        (
            "node_cpu_s",
            "cpu_seconds_total",
            "CPU time of the daemon without its children.",
        ),
        ("node_moves", "moves_total", "Moves to other blocks, while the node served."),
        ("node_moves_given_up", "moves_given_up_total", "Moves that were planned and not made."),
        ("node_notices", "preemption_notices_total", "Notices that the machine is about to go."),
        # -- links
        ("link_frames_sent", "link_frames_sent_total", "Session frames sent to peers."),
        ("link_frames_received", "link_frames_received_total", "Session frames from peers."),
        (
            "link_activation_bytes_sent",
            "link_activation_sent_bytes_total",
            "Hidden states sent to peers.",
        ),
        (
            "link_activation_bytes_received",
            "link_activation_received_bytes_total",
            "Hidden states from peers.",
        ),
        ("link_peers_lost", "link_peers_lost_total", "Peers lost."),
    )
)

DIRECTORY_ROWS = (
    ("restarts", "directory_restarts_total", "Directory processes started anew."),
    ("sent", "announcements_sent_total", "Announcements of this node that some peer has taken."),
    (
        "failed",
        "announcements_failed_total",
        "Announcements that the directory was not there for, or did not answer: they follow later.",
    ),
    ("refused", "announcements_refused_total", "Announcements that no peer has taken."),
    (
        "records_refused",
        "directory_records_refused_total",
        "Records of others that were not taken here: forged, malformed, or of another time.",
    ),
)
"""As ROWS, of `swarmd.swarm.directory.DirectoryStats`."""
