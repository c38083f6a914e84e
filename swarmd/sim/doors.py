"""The doors of a simulated process: what `node.inference` and `node.peering` do, without gRPC."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from swarmd.core.errors import (
    CapacityError,
    CoverageError,
    LeaseEnded,
    PeerUnreachable,
    SwarmdError,
)
from swarmd.core.prefix import first_key
from swarmd.node.requests import Generation
from swarmd.v1 import peer_pb2 as pb

if TYPE_CHECKING:
    from swarmd.sim.call import Call
    from swarmd.sim.node import Process

ANSWER_S = 5.0


class Doors:
    """Where clients and other nodes come in."""

    def __init__(self, process: Process) -> None:
        self.calls: list[Call] = []
        """Those that are served."""
        self._process = process

    # For clients.

    def take(self, call: Call, generation: Generation) -> None:
        """A client's call has come."""
        self.calls.append(call)
        loop = self._process.loop
        task = loop.spawn(self._generate(call, generation))
        call.hang_up = functools.partial(loop.do, task.cancel)

    async def _generate(self, call: Call, generation: Generation) -> None:
        process = self._process
        try:
            if not process.open:
                raise PeerUnreachable("this node is still loading its model: ask another one")
            generation = self._with_past(call, generation)
            target = self._redirect(call, generation)
            if target is not None:
                call.redirect(target)
                return
            if not process.accepts:
                raise PeerUnreachable("this node is draining: ask another one")
            with process.coordinator.run(generation) as run:
                call.run = run
                async for output in run:
                    call.tell(output)
        except SwarmdError as error:
            call.fail(error)
        finally:
            if process.loop.alive:
                self.calls.remove(call)

    def _with_past(self, call: Call, generation: Generation) -> Generation:
        """Let a generation begin with what a kept session holds. Raises LeaseEnded."""
        if call.continues is None or generation.resume is not None:
            return generation
        kept, now = self._process.coordinator.kept, self._process.loop.time()
        past = kept.find(call.continues, now, whole=False)
        assert past is not None
        ids = (*past.ids, *generation.prompt_ids)
        return replace(generation, prompt_ids=ids, past=past)

    def _redirect(self, call: Call, generation: Generation) -> str | None:
        """Where the client should go instead, if it would."""
        stays = generation.past is not None and generation.past.route
        if generation.resume is not None or stays or not call.may_be_redirected:
            return None
        process = self._process
        key = first_key(generation.prompt_ids, process.world.model.digest, b"")
        home = process.routes.home(key) if key else None
        if home is None and process.stage.span.start == 0 and process.serves:
            return None
        try:
            target = home or process.routes.first_hop()
        except (CoverageError, CapacityError):
            return None
        return None if target.peer_id == process.machine.peer_id else target.peer_id

    def release(self, session: bytes, secret: bytes) -> None:
        """End a lease early, if it has not ended."""
        with contextlib.suppress(LeaseEnded):
            self._process.coordinator.release(session, secret)

    # For other nodes.

    async def ask(self, address: str, own_id: str) -> pb.IntroduceReply:
        """Have the node at an address introduce itself. Raises PeerUnreachable."""
        process = self._process
        network, loop = process.world.network, process.loop
        peer_id = address.partition(":")[0]
        answer = loop.create_future()

        def settle(reply: pb.IntroduceReply | str) -> None:
            if answer.done():
                return
            if isinstance(reply, str):
                answer.set_exception(PeerUnreachable(reply))
            else:
                answer.set_result(reply)

        def settle_here(reply: pb.IntroduceReply | str) -> None:
            loop.do(functools.partial(settle, reply))

        def knock() -> None:
            other = process.world.machines[peer_id]
            if not other.alive:
                network.way(peer_id, own_id, lambda: settle_here("refused"))
                return
            doors = other.running.doors
            other.running.loop.do(lambda: doors.introduce(own_id, settle_here))

        network.way(own_id, peer_id, knock)
        loop.call_later(ANSWER_S, settle, "no answer in time")
        reply: pb.IntroduceReply = await answer
        return reply

    def introduce(self, to: str, settle: Callable[[pb.IntroduceReply], None]) -> None:
        """Answer a node that knocks."""
        reply = self._process.membership.peering.introduction()
        self._process.world.network.way(reply.peer_id, to, lambda: settle(reply))
