"""The compute thread: takes what hops submit, forms microbatches, runs the stage, draws tokens.

Which steps run together is `swarmd.engine.batcher`'s decision; what a result means is
`swarmd.pipeline.hop`'s. One thread per stage; within a session everything keeps its order.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from swarmd.engine import codec
from swarmd.engine.batcher import Batcher, Work
from swarmd.engine.exhaustion import is_exhaustion, is_loss
from swarmd.engine.sampler import Draw, Sampler, sample_rows
from swarmd.engine.stage import Stage
from swarmd.node import kv_copy
from swarmd.node.compute_log import ComputeStats, MicrobatchLog
from swarmd.node.compute_session import ComputeSession
from swarmd.node.pace import Pace
from swarmd.node.speed import Speed
from swarmd.node.step_batch import batch_of, work_of
from swarmd.node.step_results import as_drawn, joined
from swarmd.node.tally import Done, Tally
from swarmd.node.units import Units
from swarmd.pipeline import events as ev
from swarmd.pipeline.steps import cut

log = logging.getLogger(__name__)

Op = ev.Operation
IDLE_S = 1.0
"""How long the thread sleeps at most, so that the watchdog sees it live."""
STUCK_S = 120.0
"""A microbatch that takes longer never ends."""
Result = ev.Computed | ev.ComputeFailed | ev.Exported | ev.Imported
"""What the thread delivers."""


class Executor:
    """Runs one stage. `put` is called on the event loop, `deliver` and `died` on the thread."""

    def __init__(
        self,
        stage: Stage,
        threads: int,
        deliver: Callable[[Sequence[Result]], None],
        died: Callable[[], None],
        before: Executor | None = None,
    ) -> None:
        """`before` is the executor that this one replaces: it goes on with its counters."""
        self.stats: ComputeStats = before.stats if before else ComputeStats()
        self.stats.alive_at = time.monotonic()
        self.log: MicrobatchLog = before.log if before else MicrobatchLog()
        self._stage = stage
        self._threads = threads
        self._deliver = deliver
        self._died = died
        self._tally = Tally(
            self.stats,
            self.log,
            Batcher(ragged=stage.ragged),
            Pace(launched=stage.device.type != "cpu"),
            Speed(len(stage.span), self.stats),
        )
        self._free_since = time.monotonic()
        self._inbox: queue.SimpleQueue[Sequence[Op] | None] = queue.SimpleQueue()
        self._queued = 0
        self._running: tuple[float, frozenset[bytes]] | None = None
        self._forward_since: tuple[int, float] | None = None
        """The clock of the thread's CPU time, and what it showed when a forward began."""
        self._cpu_clock: int | None = None
        self._sessions: OrderedDict[bytes, ComputeSession] = OrderedDict()
        self._units = Units()
        self._one = codec.OneRow(stage.dtype)
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def queue_depth(self) -> int:
        """Sessions with a step that waits, roughly: read from another thread."""
        return self._inbox.qsize() + self._queued

    def computing(self) -> tuple[float, frozenset[bytes]] | None:
        """Since when, by the monotonic clock, which sessions are computed; None while none is."""
        return self._running

    @property
    def forward_cpu_s(self) -> float:
        """CPU time of the thread in `Stage.forward` until now, also in one that is not done yet."""
        done, since = self.stats.forward_cpu_s, self._forward_since
        if since is None:
            return done
        clock, began = since
        try:
            return done + time.clock_gettime(clock) - began
        except OSError:  # the thread has just ended
            return done

    def put(self, *ops: Op) -> None:
        """Queue operations; those of one session are done in order.

        Those that come together are seen together: steps of many sessions can share a microbatch.
        """
        self._inbox.put(ops)

    def stop(self, timeout: float = 5.0) -> None:
        """Finish the microbatch that runs, then end the thread."""
        self._inbox.put(None)
        self._thread.join(timeout)
        if not self.running:
            self._sessions.clear()
            self._units.clear()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_well(self) -> bool:
        """Whether the thread runs, and has looked for work lately: systemd's watchdog asks that."""
        return self.running and time.monotonic() - self.stats.alive_at < STUCK_S

    # -- everything below runs on the compute thread ---------------------------------------

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            # A node that cannot compute must go, so that its sessions are repaired elsewhere.
            log.exception("the compute thread ended")
            self._died()

    def _work(self) -> None:
        torch.set_num_threads(self._threads)  # counts for the thread that calls it
        self._cpu_clock = _own_cpu_clock()
        while self._take_in():
            self.stats.alive_at = time.monotonic()
            if self._decodes_alone():
                self._deliver([self._compute_alone()])
            elif works := self._tally.choose(self._ready()):
                self._deliver(self._compute_and_count(works))
        self._tally.settle()

    def _take_in(self) -> bool:
        """Sort what has come into the sessions; wait when there is nothing to do yet."""
        try:
            while (wait := self._wait_s()) or not self._inbox.empty():
                ops = self._next_ops(wait)
                if ops is None:
                    return False
                for op in ops:
                    self._accept(op)
        except queue.Empty:
            pass
        return True

    def _next_ops(self, wait: float) -> Sequence[Op] | None:
        """Return what came next. Raises queue.Empty when nothing does in time."""
        if not wait:  # something is there
            return self._inbox.get()
        began = time.monotonic()
        try:
            return self._inbox.get(timeout=wait)
        finally:
            if wait < IDLE_S:
                self.stats.held_s += time.monotonic() - began

    def _wait_s(self) -> float:
        """How long to wait for more: until something comes, or for sessions that are due."""
        if len(self._sessions) == 1:
            (only,) = self._sessions.values()
            return 0.0 if only.came else IDLE_S
        came = [session.came[0] for session in self._sessions.values() if session.came]
        if not came:
            return IDLE_S
        if len(came) > self._decodes_ready():
            return 0.0
        now = time.monotonic()
        since = max(self._free_since, min(came))
        return min(IDLE_S / 2, self._tally.hold_until(len(came), since, now) - now)

    def _decodes_ready(self) -> int:
        return sum(
            isinstance(op := session.ops[0], ev.Submit) and op.step.length == 1
            for session in self._sessions.values()
            if session.ops
        )

    def _accept(self, op: Op) -> None:
        if isinstance(op, ev.Submit):
            self._accept_step(op)
            return
        if isinstance(op, ev.Drop):
            self._units.drop(op.unit)
            return
        if isinstance(op, ev.Free):
            # Nobody waits for what the session had queued.
            self._sessions.pop(op.session, None)
            self._tally.gone(op.session)
            return
        session = self._session(op.session)
        if isinstance(op, ev.Attach):
            try:
                self._units.attach(session.ragged, op)
            except Exception as error:
                session.broken = error
        elif isinstance(op, ev.Export):
            self._deliver([kv_copy.export(self._stage, session.ragged, op)])
        elif isinstance(op, ev.Freeze):
            self._units.freeze(session.ragged, op)
        else:
            session.ops.append(op)
            self._settle(session)

    def _accept_step(self, submit: ev.Submit) -> None:
        session, now = self._session(submit.session), time.monotonic()
        session.ops.append(submit)  # what is before it, if anything, waits for a step before that
        session.came.append(now)
        if submit.step.length == 1:
            self._tally.came(submit.session, submit.step.waited_us / 1e6, now)

    def _session(self, key: bytes) -> ComputeSession:
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = ComputeSession(self._stage.new_cache())
        return session

    def _settle(self, session: ComputeSession) -> None:
        """Do what needs no computing, up to the next step."""
        while session.ops and not isinstance(op := session.ops[0], ev.Submit):
            session.ops.popleft()
            if isinstance(op, ev.Import):
                self._deliver([kv_copy.imported(self._stage, session.ragged, op)])
                continue
            try:
                session.cache.truncate(op.length)  # copies a shared tile that is cut through
            except Exception as error:
                session.broken = error

    def _ready(self) -> list[Work]:
        """The next step of every session, in the order in which they came."""
        works = []
        for key, session in self._sessions.items():
            if session.ops and isinstance(op := session.ops[0], ev.Submit):
                in_parts = self._stage.chunk_exact and op.step.length > 1
                rows = self._tally.chunk_rows() if in_parts else None
                works.append(work_of(key, op, rows))
        self._queued = len(works)
        return works

    def _next_submit(self, work: Work) -> tuple[ev.Submit, float]:
        """Take a session's next step, or the part of it that was chosen, and when it came."""
        session = self._sessions[work.key]
        op = session.ops[0]
        assert isinstance(op, ev.Submit)
        self._sessions.move_to_end(work.key)
        border = op.step.position + work.rows
        if border < op.step.end:
            session.ops[0] = replace(op, step=cut(op.step, border, op.step.end))
            return replace(op, step=cut(op.step, op.step.position, border)), session.came[0]
        session.ops.popleft()
        return op, session.came.popleft()

    def _compute_and_count(self, works: Sequence[Work]) -> list[Result]:
        taken = [self._next_submit(work) for work in works]
        began, wall = time.monotonic(), time.time()
        waited = {submit.session: began - came for submit, came in taken}
        self._running = began, frozenset(waited)
        results = self._compute([submit for submit, _ in taken])
        self._running = None
        ended = self._free_since = time.monotonic()
        lives, rows, failed, wholes = {}, 0, False, []
        for submit, _ in taken:
            step, lasted = submit.step, waited[submit.session]
            self.stats.queue_wait_s += lasted
            if step.length == 1:
                lives[step.session] = step.waited_us / 1e6 + lasted
            else:
                rows += step.length
        for result in results:
            failed = failed or isinstance(result, ev.ComputeFailed)
            if (whole := self._whole(result, waited)) is not None:
                wholes.append(whole)
        self.stats.decodes += len(lives)
        self.stats.decode_microbatches += bool(lives)
        blocks = len(taken[0][0].blocks)
        self._tally.done(Done(began, ended, wall, len(taken), lives, rows, blocks, failed))
        return wholes

    def _decodes_alone(self) -> bool:
        """Whether the next step is a decode of the only session there is: nothing to choose."""
        if len(self._sessions) != 1:
            return False
        (session,) = self._sessions.values()
        op = session.ops[0] if session.ops else None
        return isinstance(op, ev.Submit) and op.step.length == 1 and not session.parts

    def _compute_alone(self) -> Result:
        (session,) = self._sessions.values()
        submit, came = session.ops.popleft(), session.came.popleft()
        assert isinstance(submit, ev.Submit)
        key, stats, self._queued = submit.session, self.stats, 1
        began, wall = time.monotonic(), time.time()
        self._running = began, frozenset((key,))
        results = self._try((submit,))
        assert results is not None
        self._running = None
        ended = self._free_since = time.monotonic()
        if session.ops:
            self._settle(session)
        result, waited, failed = results[0], began - came, True
        if isinstance(result, ev.Computed):
            result.waited_us, failed = int(waited * 1e6), False
        stats.queue_wait_s += waited
        stats.decodes += 1
        stats.decode_microbatches += 1
        lives = {key: submit.step.waited_us / 1e6 + waited}
        done = Done(began, ended, wall, 1, lives, 0, len(submit.blocks), failed)
        self._tally.done_alone(submit.tenant, done)
        return result

    def _whole(self, result: Result, waited: Mapping[bytes, float]) -> Result | None:
        """Return the result of a whole step; None while parts of it are to be computed yet."""
        session = self._sessions.get(result.session)
        if not isinstance(result, ev.Computed) or session is None:
            return result
        result.waited_us = int(waited[result.session] * 1e6)
        ahead = session.ops[0] if session.ops else None
        if isinstance(ahead, ev.Submit) and ahead.ticket == result.ticket:
            session.parts.append(result)
            return None
        if not session.parts:
            return result
        parts, session.parts = [*session.parts, result], []
        return joined(parts)

    def _compute(self, submits: Sequence[ev.Submit]) -> list[Result]:
        results = self._try(submits)
        if results is None:
            # Alone, only the one that is to blame fails. Rows written twice do no harm.
            return [result for submit in submits for result in self._compute([submit])]
        for submit in submits:
            session = self._sessions.get(submit.session)
            if session is not None:
                self._settle(session)
        return results

    def _try(self, submits: Sequence[ev.Submit]) -> list[Result] | None:
        """Run a microbatch: one bad step must not end the daemon. None: to be tried one by one.

        What a failed forward holds is given back here, before anything is tried again.
        """
        try:
            return self._forward(submits)
        except Exception as error:
            if is_loss(error):
                raise  # no later step can succeed either: this node must go
            exhausted, reason = is_exhaustion(error), kv_copy.reason_of(error)
            if exhausted:
                log.warning("no memory for a microbatch sessions=%d: %s", len(submits), reason)
            elif len(submits) == 1:
                log.exception("compute failed session=%s", submits[0].session.hex()[:8])
        for submit in submits:
            self._sessions[submit.session].give_back()
        if len(submits) > 1:
            return None
        return [ev.ComputeFailed(s.session, s.ticket, reason, exhausted) for s in submits]

    def _forward(self, submits: Sequence[ev.Submit]) -> list[Result]:
        blocks, caches = submits[0].blocks, []
        for submit in submits:
            session = self._sessions[submit.session]
            if session.broken:
                raise session.broken
            caches.append(session.cache)
        batch = batch_of(submits, caches, blocks, self._stage.dtype, self._one)
        began, cpu_began = time.perf_counter(), time.thread_time()
        self._forward_since = (self._cpu_clock, cpu_began) if self._cpu_clock is not None else None
        try:
            output = self._stage.forward(batch)
            if blocks.end < self._stage.info.num_blocks:
                output = output.cpu()  # all at once, from wherever it is
        finally:
            self._forward_since = None
        stats = self.stats
        stats.forward_cpu_s += time.thread_time() - cpu_began
        stats.busy_s += time.perf_counter() - began
        stats.microbatches += 1
        stats.steps += len(submits)
        for submit in submits:
            stats.tokens += submit.step.length
        if blocks.end == self._stage.info.num_blocks:
            return self._draw(submits, output)
        if len(submits) == 1 and output.shape[0] == 1:
            payload = self._one.payload(output)
            return [ev.Computed(submits[0].session, submits[0].ticket, payload)]
        parts = output.split_with_sizes([submit.step.length for submit in submits])
        results: list[Result] = []
        for submit, part in zip(submits, parts, strict=True):
            results.append(ev.Computed(submit.session, submit.ticket, codec.to_payload(part)))
        return results

    def _draw(self, submits: Sequence[ev.Submit], logits: torch.Tensor) -> list[Result]:
        draws = []
        for submit in submits:
            for want in submit.step.wants:
                ids = submit.ids[: want + 1]
                draws.append(Draw(self._sampler(submit), ids, submit.prompt_tokens, want + 1))
        sampled = sample_rows(logits, draws)
        results: list[Result] = []
        row = 0
        for submit in submits:
            end = row + len(submit.step.wants)
            tokens = as_drawn(draws[row:end], sampled[row:end])
            results.append(ev.Computed(submit.session, submit.ticket, tokens=tokens))
            row = end
        return results

    def _sampler(self, submit: ev.Submit) -> Sampler:
        session = self._sessions[submit.session]
        assert submit.sampling is not None
        sampler, params = session.sampler, submit.sampling
        if sampler is None or (sampler.params is not params and sampler.params != params):
            sampler = session.sampler = Sampler(params, self._stage.info.vocab_size)
        return sampler


def _own_cpu_clock() -> int | None:
    """The clock of this thread's CPU time, for other threads to read; None where there is none."""
    found = getattr(time, "pthread_getcpuclockid", None)
    return found(threading.get_ident()) if found else None
