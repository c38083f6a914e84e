"""Kept sessions: what goes on from them, what they share, what they may take, and when it ends."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from bench_hop import SECRET
from bench_shop import Shop

from swarmd.core.errors import KVExhausted, PromptTooLong
from swarmd.core.frames import Past, Release
from swarmd.core.sampling import SamplingParams
from swarmd.lossy_links import Weather
from swarmd.pipeline.events import Attach, Drop, Freeze, Tick
from swarmd.pipeline.hop import HopPolicy
from swarmd.pipeline.steps import ChunkPlan, borders_of
from swarmd.simulation import Client, Swarm
from swarmd.toys import toy_model, toy_oracle

MODEL = toy_model(num_blocks=9)
PROMPT = tuple(range(40))
CHUNK, UNIT, TOKENS = 16, 8, 21
NODES = {"a": "0:3", "b": "3:6", "c": "6:9"}


def make(exact: bool = False, keep: int = 1000, kv: int = 1 << 20, unit: int = UNIT) -> Swarm:
    """A swarm that may keep so many positions on each hop."""
    policy = HopPolicy(prefix_unit=unit, keep_bytes=3 * keep)
    swarm = Swarm(MODEL, hop_policy=policy, chunk_exact=exact)
    swarm.add("boss")
    for peer, blocks in NODES.items():
        swarm.add(peer, blocks, kv_bytes=kv)
    return swarm


class Talk:
    """A conversation: each turn is a session that goes on from a kept one."""

    def __init__(self, swarm: Swarm, number: int = 1) -> None:
        self.swarm, self.number = swarm, number

    def begin(
        self,
        prompt: tuple[int, ...],
        past: Client | None = None,
        tokens: int = 0,
        keep_s: float = 60.0,
        max_tokens: int = TOKENS,
    ) -> Client:
        """Start a turn; `prompt` is what follows the past, of which the first `tokens` count."""
        before = (*past.request.prompt_ids, *past.ids) if past else ()
        before = before[: tokens or len(before)]
        sampling = SamplingParams(temperature=1.0, seed=self.number, presence_penalty=0.3)
        client = self.swarm.client(self.number, (*before, *prompt), max_tokens, sampling, CHUNK)
        self.number += 1
        client.request = replace(client.request, keep_s=keep_s)
        if past is not None:
            old = past.request
            client.request = replace(
                client.request,
                past=Past(old.session, old.secret, len(before)),
                borders=borders_of(old.borders, len(old.prompt_ids), len(before)),
            )
        self.swarm.start(client, "boss")
        return client

    def end(self, client: Client) -> Client:
        """Let a turn end, and hold its ids against those of one process."""
        self.swarm.run(self.swarm.now + 50, lambda: client.finished is None)
        assert client.finished is not None
        assert client.finished.error is None
        request = client.request
        assert client.ids == toy_oracle(
            MODEL,
            request.prompt_ids,
            request.sampling,
            request.max_tokens,
            CHUNK,
            chunk_exact=self.swarm.chunk_exact,
            borders=request.borders,
        )
        return client

    def turn(self, *args: object, **rest: object) -> Client:
        """A turn from its beginning to its end; what it leaves has come to all hops then."""
        client = self.end(self.begin(*args, **rest))  # type: ignore[arg-type]
        self.swarm.run(self.swarm.now + 1)
        return client


def cached(client: Client) -> int:
    assert client.run is not None
    return client.run.driver.cached


def used(swarm: Swarm) -> int:
    """KV in use, idle prefixes not counted."""
    return sum(
        sum(node.account.reserved.values()) - node.table.prefixes.idle_bytes
        for node in swarm.nodes.values()
        if node.alive
    )


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("unit", [UNIT, 0], ids=["with a prefix cache", "without"])
def test_the_next_turn_goes_on_without_prefill(exact: bool, unit: int) -> None:
    talk = Talk(make(exact, unit=unit))
    past = talk.turn(PROMPT)
    for n in range(3):
        turn = talk.turn((n, n + 1, n + 2), past)
        # The last id of a turn has never been fed to anybody.
        assert cached(turn) == len(past.request.prompt_ids) + TOKENS - 1
        past = turn


@pytest.mark.parametrize("exact", [True, False])
def test_nothing_needs_to_follow(exact: bool) -> None:
    talk = Talk(make(exact))
    past = talk.turn(PROMPT)
    assert cached(talk.turn((), past)) == len(PROMPT) + TOKENS - 1


@pytest.mark.parametrize("tokens", [1, 15, 16, 33, len(PROMPT), len(PROMPT) + 5])
def test_a_part_of_the_past_will_do(tokens: int) -> None:
    talk = Talk(make())
    turn = talk.turn((5, 6, 7), talk.turn(PROMPT), tokens)
    # Within the prompt a chunk that is cut in two is computed again.
    whole = tokens if tokens >= len(PROMPT) else tokens - tokens % CHUNK
    assert cached(turn) == whole


@pytest.mark.parametrize("exact", [True, False])
def test_forks_share_their_past_and_each_gets_its_own_text(exact: bool) -> None:
    swarm = make(exact)
    talk = Talk(swarm)
    past = talk.turn(PROMPT)
    alone = used(swarm)
    assert alone == (len(PROMPT) + TOKENS - 1) * MODEL.num_blocks
    forks = [talk.begin((n, n), past, max_tokens=6) for n in range(5)]
    swarm.run(swarm.now + 50, lambda: not all(fork.ids for fork in forks))
    whole = (len(PROMPT) + TOKENS - 1) // UNIT * UNIT
    own = len(PROMPT) + TOKENS + 2 + 6 - whole
    assert used(swarm) <= alone + 5 * own * MODEL.num_blocks
    assert used(swarm) < (alone + 5 * (own + whole) * MODEL.num_blocks) / 2
    texts = {tuple(talk.end(fork).ids) for fork in forks}
    assert len(texts) == 5
    assert all(cached(fork) == len(PROMPT) + TOKENS - 1 for fork in forks)


def test_when_the_leases_end_everything_is_free() -> None:
    swarm = make()
    talk = Talk(swarm)
    past = talk.turn(PROMPT, keep_s=20)
    fork = talk.begin((1,), past, keep_s=0, max_tokens=2000)
    swarm.run(swarm.now + 20, lambda: len(fork.ids) < 5)
    swarm.run(swarm.now + 25, lambda: fork.finished is None)
    assert fork.finished is None
    assert all(not node.table.leases for node in swarm.nodes.values())
    assert used(swarm) > 0, "who has begun with it keeps it"
    swarm.stop(fork)
    swarm.run(swarm.now + 2)
    assert used(swarm) == 0
    for node in swarm.nodes.values():
        node.drop_prefixes()
        assert node.account.reserved == {}
        assert node.stage.units == len(node.stage) == 0
        assert node.table.budget.used == 0
        assert node.table.prefixes.pinned_bytes == 0


def test_what_is_kept_is_not_evicted_for_others_before_its_end() -> None:
    swarm = make(kv=3 * 100)
    talk = Talk(swarm)
    past = talk.turn(PROMPT, keep_s=100)
    other = talk.begin(tuple(range(500, 550)), keep_s=0)
    swarm.run(swarm.now + 40, lambda: other.finished is None)
    assert other.finished is not None
    assert isinstance(other.finished.error, KVExhausted)
    assert cached(talk.turn((1, 2), past, keep_s=0, max_tokens=3)) == len(PROMPT) + TOKENS - 1
    swarm.run(swarm.now + 100)
    talk.turn(tuple(range(500, 550)), keep_s=0)


def test_what_may_be_kept_is_bounded_and_refused_at_the_beginning() -> None:
    swarm = make(keep=100)
    talk = Talk(swarm)
    past = talk.turn(PROMPT)
    second = talk.begin(tuple(range(100, 140)))
    swarm.run(swarm.now + 5, lambda: second.finished is None)
    assert second.finished is not None
    assert isinstance(second.finished.error, KVExhausted)
    assert "to keep 61 positions takes 183 bytes more, and 180 of the 300" in str(
        second.finished.error
    )
    talk.turn(tuple(range(100, 140)), keep_s=0)
    # A next turn counts with what it adds only.
    talk.turn((1, 2), past, max_tokens=10)


def release(swarm: Swarm, client: Client, secret: bytes = b"") -> None:
    for peer in NODES:
        order = Release(client.request.session, secret or client.request.secret)
        swarm.links.send("boss", peer, order)
    swarm.run(swarm.now + 1)


def test_a_lease_that_is_released_makes_room_at_once_for_another() -> None:
    swarm = make(keep=70)
    talk = Talk(swarm)
    past = talk.turn(PROMPT, keep_s=1000.0)
    full = used(swarm)
    release(swarm, past, b"x" * 16)
    assert used(swarm) == full > 0, "who does not know the secret ends nothing"
    release(swarm, past)
    assert used(swarm) == 0
    assert not any(len(node.table.leases) for node in swarm.nodes.values())
    talk.turn(PROMPT[::-1], keep_s=1000.0)
    release(swarm, past)
    assert used(swarm) == full, "to release twice touches nothing else"


def test_who_has_gone_on_from_a_session_keeps_what_it_shares_when_that_is_released() -> None:
    swarm = make()
    talk = Talk(swarm)
    past = talk.turn(PROMPT)
    fork = talk.begin((1, 2, 3), past, keep_s=0.0)
    swarm.run(swarm.now + 50, lambda: not fork.ids)
    release(swarm, past)
    assert cached(talk.end(fork)) == len(PROMPT) + TOKENS - 1
    swarm.run(swarm.now + 1)
    assert used(swarm) == 0


def test_a_session_that_could_never_be_kept_is_told_so() -> None:
    swarm = make(keep=60)
    client = Talk(swarm).begin(PROMPT)
    swarm.run(5)
    assert client.finished is not None
    assert isinstance(client.finished.error, PromptTooLong)
    assert "ask without keep_alive, or for fewer tokens" in str(client.finished.error)


def test_a_crowd_that_is_under_way_counts_as_kept() -> None:
    swarm = make(keep=150)
    talk = Talk(swarm)
    clients = [talk.begin(tuple(range(n, n + 40))) for n in (0, 100, 200)]
    for client in clients:
        swarm.run(swarm.now + 50, lambda client=client: client.finished is None)
    errors = [client.finished.error for client in clients if client.finished]
    assert sum(error is None for error in errors) == 2
    assert sum(isinstance(error, KVExhausted) for error in errors) == 1


@pytest.mark.parametrize("lost", ["a", "b", "c"])
def test_a_hop_that_has_lost_what_it_kept_computes_it_again(lost: str) -> None:
    swarm = make()
    talk = Talk(swarm)
    past = talk.turn(PROMPT)
    swarm.kill(lost)
    swarm.add("heir", NODES[lost])
    swarm.run(swarm.now + 3)
    assert cached(talk.turn((1, 2, 3), past)) == 0


@pytest.mark.parametrize("lost", ["b", "c"])
def test_a_session_that_went_on_is_repaired_out_of_what_its_past_sent(lost: str) -> None:
    swarm = make()
    talk = Talk(swarm)
    fork = talk.begin((1, 2, 3), talk.turn(PROMPT), max_tokens=40)
    swarm.run(swarm.now + 50, lambda: len(fork.ids) < 10)
    assert cached(fork) > 0
    swarm.add("heir", NODES[lost])
    swarm.kill(lost)
    talk.end(fork)
    assert fork.repairs == 1
    before = swarm.nodes["a" if lost == "b" else "b"].table
    assert before.counters.replayed_positions >= len(PROMPT) + TOKENS
    assert swarm.nodes["a"].table.counters.recomputed_positions <= 2


def test_nobody_goes_on_from_a_session_whose_secret_he_does_not_know() -> None:
    swarm = make()
    talk = Talk(swarm)
    past = talk.turn(PROMPT)
    past.request = replace(past.request, secret=b"x" * 16)
    assert cached(talk.turn((1, 2, 3), past)) == 0


@pytest.mark.parametrize("exact", [False, True])
def test_a_past_of_unknown_chunks_is_begun_with_where_chunks_do_not_matter(exact: bool) -> None:
    """Another coordinator than its own knows the ids alone."""
    swarm = make(exact)
    talk = Talk(swarm)
    past = talk.turn(PROMPT)
    ids = (*past.request.prompt_ids, *past.ids)[: len(PROMPT) + 16]
    fork = swarm.client(9, (*ids, 1, 2, 3), TOKENS, SamplingParams(seed=9), CHUNK)
    told = Past(past.request.session, past.request.secret, len(ids), run=len(ids) + 1)
    fork.request = replace(fork.request, past=told)
    swarm.start(fork, "boss")
    talk.end(fork)
    assert cached(fork) == (len(ids) if exact else 0)


def test_a_session_that_failed_is_not_kept() -> None:
    swarm = make()
    client = Talk(swarm).begin(PROMPT)
    swarm.run(50, lambda: len(client.ids) < 5)
    swarm.stop(client)
    swarm.run(swarm.now + 2)
    assert not any(len(node.table.leases) for node in swarm.nodes.values())
    assert used(swarm) == 0


def test_former_outputs_are_cut_as_they_were_computed() -> None:
    plan = ChunkPlan(30, 8, (10, 15))
    cuts, position = [], 0
    while position < 32:
        (size, *_) = plan.next(position, 32, 1)
        assert plan.floor(position + size - 1) == position
        cuts.append(size)
        position += size
    assert cuts == [8, 2, 1, 1, 1, 1, 1, 8, 7, 1, 1]
    assert plan.next(10, 32, 64) == (1,) * 5
    assert borders_of((10, 15), 30, 33) == (10, 15, 30, 33)
    assert borders_of((10, 15), 30, 12) == (10, 12)
    assert borders_of((10, 15), 30, 20) == (10, 15)
    assert borders_of((10, 15), 30, 4) == ()


@pytest.mark.parametrize("seed", range(12))
def test_forks_of_forks_stay_right_whatever_happens_to_the_hops(seed: int) -> None:
    draw = random.Random(seed)
    policy = HopPolicy(prefix_unit=draw.choice([0, UNIT]), keep_bytes=3 * 2000)
    weather = Weather(delay=(0.001, 0.02), compute=(0.001, 0.01))
    swarm = Swarm(MODEL, seed, weather, policy, chunk_exact=draw.random() < 0.5)
    swarm.add("boss")
    for number in range(2):
        for peer, blocks in NODES.items():
            swarm.add(f"{peer}{number}", blocks)
    talk = Talk(swarm)
    pasts = [talk.turn(PROMPT, keep_s=30), talk.turn(PROMPT[:24], keep_s=30)]
    for _ in range(4):
        running = []
        for _ in range(draw.randint(1, 4)):
            past = draw.choice(pasts)
            length = len(past.request.prompt_ids) + len(past.ids)
            tail = tuple(draw.randrange(50) for _ in range(draw.randint(0, 9)))
            most = draw.randint(1, 30)
            keep = draw.choice([0.0, 30.0])
            running.append(talk.begin(tail, past, draw.randint(1, length), keep, most))
        if draw.random() < 0.6:
            swarm.run(swarm.now + draw.uniform(0, 0.3))
            victims = [peer for peer in swarm.nodes if peer != "boss" and swarm.nodes[peer].alive]
            victim = draw.choice(victims)
            swarm.kill(victim)
            swarm.add(f"{victim}x", NODES[victim[0]])
        if draw.random() < 0.3:
            swarm.stop(running.pop())
        pasts += [talk.end(client) for client in running if client.request.keep_s]
        for client in running:
            talk.end(client)
        swarm.run(swarm.now + draw.choice([0.1, 2, 20]))
    swarm.run(swarm.now + 60)
    assert used(swarm) == 0
    for node in swarm.nodes.values():
        if node.alive:
            assert node.stage.units == len(node.table.prefixes)
            assert node.table.prefixes.pinned_bytes == len(node.table.leases) == 0
            node.drop_prefixes()
            assert node.account.reserved == {}
            assert node.table.budget.used == 0


def test_a_unit_that_a_lease_has_chosen_does_not_go_for_the_outputs_of_a_later_one() -> None:
    """Of two that compute the same prompt one is faster; what it made is idle when it has ended."""
    shop = Shop(total=2000, log_bytes=1950, keep_bytes=1000)
    shop.open(1)
    shop.open(2, keeps=True)
    shop.prefill(1)
    shop.close(1)
    for number in (3, 4, 5, 6):
        ids = tuple(range(100 * number, 100 * number + 30))
        shop.open(number, ids)
        shop.prefill(number, ids)
        shop.close(number)
    shop.prefill(2)
    for position in range(30, 40):
        shop.step(2, position, 1)
    evicted = shop.table.counters.prefix_evicted_positions
    actions = shop.close(2, keep_s=10.0)
    assert shop.table.counters.prefix_evicted_positions > evicted, "or the limit is not met"
    kept = [a.unit for a in actions if isinstance(a, Freeze)]
    dropped = {a.unit for a in actions if isinstance(a, Drop)}
    assert len(kept) == 3, "the first seven were there already"
    shop.open(7, past=Past(bytes([2]) * 16, SECRET, 40), ids=tuple(range(50)))
    (attach,) = [action for action in shop.actions if isinstance(action, Attach)]
    assert len(attach.units) == 10
    assert not dropped & set(attach.units)
    shop.close(7)
    shop.now = 10.0
    shop.table.handle(Tick(), shop.now)
    assert shop.table.prefixes.pinned_bytes == 0
    shop.table.prefixes.clear()
    assert not shop.account.reserved
