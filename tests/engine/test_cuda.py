"""On a CUDA device: the same ids as on a CPU, within its memory, and an error hurts nobody else.

`TEST_DEVICE=cpu` runs what can be run without one, to try the tests themselves.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from swarmd.core.errors import ConfigError
from swarmd.core.sampling import SamplingParams
from swarmd.core.span import Span
from swarmd.engine import load, pool, probe
from swarmd.engine.kv_cache import RaggedCache
from swarmd.engine.sampler import Draw, Sampler, sample_rows
from swarmd.engine.stage import Batch, Segment, Stage
from tests.engine import exactness
from tests.engine.architectures import ARCHITECTURES, RAGGED, Architecture
from tests.engine.exactness import NEW, PROMPT, Case, Session, run_one, run_together
from tests.engine.sources import DirectorySource

DEVICE = os.environ.get("TEST_DEVICE", "cuda:0")
IS_CUDA = DEVICE.startswith("cuda")
TOLERANCE = 1e-3
"""How far a logit may be from `generate`'s, on the device or on a CPU."""

pytestmark = [
    pytest.mark.skipif(
        IS_CUDA and not torch.cuda.is_available(), reason="torch finds no CUDA device here"
    ),
    pytest.mark.usefixtures("pooled"),
]
needs_cuda = pytest.mark.skipif(not IS_CUDA, reason="what it looks at is a CUDA device's own")

FAMILIES = {
    "llama",
    "llama_tied",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gpt_oss",
    "gpt2",
    "mixtral",
    "deepseek_v3",
    "phi",
    "cohere",
    "olmo2",
    "bloom",
    "falcon",
    "qwen3_next",
    "mamba2",
    "jamba",
}


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the device, if the tests themselves are tried on a CPU."""
    monkeypatch.setattr(pool, "pays", lambda _: True)


@pytest.fixture(scope="module", params=[a for a in ARCHITECTURES if str(a) in FAMILIES], ids=str)
def both(request: pytest.FixtureRequest) -> tuple[Case, Case]:
    """What `generate` makes of a model on the CPU, and on the device."""
    architecture: Architecture = request.param
    on_cpu = exactness.case.__wrapped__(architecture)
    return on_cpu, exactness.case.__wrapped__(architecture, DEVICE)


def test_every_split_generates_what_the_whole_model_does(both: tuple[Case, Case]) -> None:
    on_cpu, case = both
    assert case.ids == on_cpu.ids
    for cuts in exactness.CUTS:
        session = run_one(case.chain(cuts), case.ids[0][:PROMPT])
        for witness in both:
            exactness.assert_as_generated(session, case.ids[0], witness.logits[0], TOLERANCE)


def test_four_sessions_share_microbatches_and_none_notices(both: tuple[Case, Case]) -> None:
    _, case = both
    prompts = [ids[:PROMPT] for ids in case.ids]
    for cuts in exactness.CUTS:
        sessions = run_together(case.chain(cuts), prompts)
        for witness in both:
            for session, ids, logits in zip(sessions, case.ids, witness.logits, strict=True):
                exactness.assert_as_generated(session, ids, logits, TOLERANCE)


def test_a_session_goes_on_where_another_device_left_it(both: tuple[Case, Case]) -> None:
    on_cpu, case = both
    here, there = on_cpu.stage(Span(0, 4)), case.stage(Span(0, 4))
    if not there.ragged:
        pytest.skip("caches of this family cannot be taken along")
    for one, other in ((here, there), (there, here)):
        session = Session([one], case.ids[0][:PROMPT])
        while len(session.logits) < NEW // 2:
            exactness.step([one], [(session, session.next_chunk((PROMPT,)))])
        (held,), taken = session.caches, other.new_cache()
        assert isinstance(held, RaggedCache)
        assert isinstance(taken, RaggedCache)
        blocks = held.export(0, session.position)
        taken.import_(0, [{n: t.cpu() for n, t in block.items()} for block in blocks])
        session.caches = [taken]
        while len(session.logits) < NEW:
            exactness.step([other], [(session, 1)])
        exactness.assert_as_generated(session, case.ids[0], case.logits[0], TOLERANCE)


def test_a_prefix_that_sessions_share_is_as_if_each_had_computed_it() -> None:
    stage = exactness.case(RAGGED[0], DEVICE).stage(Span(0, 4))
    ids = torch.randint(2, 150, (140,), generator=torch.Generator().manual_seed(3))

    def logits(cache: Any, start: int) -> torch.Tensor:
        batch = Batch(
            0, 4, (Segment(cache, start, 140 - start),), ids[start:], None, (139 - start,)
        )
        return stage.forward(batch).cpu()

    first = stage.new_cache()
    assert isinstance(first, RaggedCache)
    wanted = logits(first, 0)
    prefix = first.freeze(0, 100)
    for held in (100, 64, 90):
        again = stage.new_cache()
        assert isinstance(again, RaggedCache)
        again.attach([prefix], held)
        torch.testing.assert_close(logits(again, held), wanted, atol=TOLERANCE, rtol=0)


# -- narrow types ------------------------------------------------------------------------------

WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
NARROW = [
    Architecture("llama", WIDE, spread=1.5),
    Architecture("qwen2", {**WIDE, "use_sliding_window": False}, spread=1.5),
    Architecture("qwen3", WIDE, spread=2.0, seed=2),
]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", NARROW, ids=str)
def test_in_16_bits_company_changes_nothing_that_the_probe_denies(
    architecture: Architecture, dtype: str, record_property: Any
) -> None:
    case = exactness.case(architecture)
    prompts = [ids[:PROMPT] for ids in case.ids]
    stage = load.load_stage(case.source, Span(0, 4), device=DEVICE, dtype=dtype, kv_memory=0)
    for name in ("ragged", "replay_exact", "chunk_exact", "precision"):
        record_property(name, getattr(stage, name))
    assert stage.ragged, stage.ragged_reason
    together = run_together([stage], prompts, (PROMPT,))
    for session, prompt, logits in zip(together, prompts, case.logits, strict=True):
        alone = run_one([stage], prompt)
        if stage.replay_exact:
            assert session.ids == alone.ids
        first, wanted = session.logits[0], logits[0]
        assert difference(first, wanted) < probe.TOLERANCE[torch.bfloat16]
        assert difference(first, alone.logits[0]) < probe.TOLERANCE[stage.dtype]


def difference(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


# -- drawing -----------------------------------------------------------------------------------

WAYS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.0, "top_logprobs": 3},
    {"temperature": 0.8},
    {"temperature": 1.3, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 40, "min_p": 0.02},
    {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "presence_penalty": 0.5},
    {"temperature": 0.7, "logit_bias": ((7, 5.0), (11, -3.0))},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "+".join(way))
def test_a_seed_draws_the_same_from_equal_logits_wherever_they_are(way: dict[str, Any]) -> None:
    vocab, count = 32_000, 48
    logits = 3 * torch.randn(count, vocab, generator=torch.Generator().manual_seed(4))
    logits[3, 100] = logits[3, 20_000] = logits[3].max() + 1  # of equals the first

    def drawn(rows: torch.Tensor) -> list[Any]:
        draws = [
            Draw(Sampler(SamplingParams(seed=n, **way), vocab), [5, 7, 7, n], 2, 4)
            for n in range(count)
        ]
        return sample_rows(rows, draws)

    for got, wanted in zip(drawn(logits.to(DEVICE)), drawn(logits), strict=True):
        assert got.id == wanted.id
        assert got.logprob == pytest.approx(wanted.logprob, abs=1e-4)
        assert [i for i, _ in got.top] == [i for i, _ in wanted.top]


# -- memory, errors, choices -------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DirectorySource:
    where = tmp_path_factory.mktemp("models") / "tiny"
    Architecture("llama", {**WIDE, "max_position_embeddings": 8192}).build().save_pretrained(where)
    return DirectorySource(where)


def test_half_of_the_free_memory_is_for_kv_and_sessions_take_what_is_counted(
    source: DirectorySource,
) -> None:
    stage = load.load_stage(source, Span(1, 3), device=DEVICE, dtype="bfloat16")
    free = load.free_memory(stage.device)
    assert 0.3 * free < stage.budget.total_bytes <= 0.55 * free
    assert stage.kv_bytes_per_token == 2 * 2 * 2 * 64 * 2
    cache = stage.new_cache()
    rows = torch.zeros(100, stage.hidden_size)
    stage.forward(Batch(1, 3, (Segment(cache, 0, 100),), hidden=rows))
    assert cache.nbytes == stage.kv_bytes(100, 1, 3)


@needs_cuda
def test_a_forward_is_done_when_it_returns(source: DirectorySource) -> None:
    stage = load.load_stage(source, Span(0, 4), device=DEVICE, dtype="bfloat16", kv_memory=0)
    cache = stage.new_cache()
    ids = torch.arange(1000) % 150
    stage.forward(Batch(0, 4, (Segment(cache, 0, 1000),), ids, None, (999,)))
    assert torch.cuda.current_stream(stage.device).query()


def plain_step(stage: Stage, cache: Any, position: int, count: int) -> torch.Tensor:
    ids = torch.arange(position, position + count) % 150
    segments = (Segment(cache, position, count),)
    return stage.forward(Batch(0, 4, segments, ids, None, (count - 1,))).cpu()


@needs_cuda
def test_without_memory_a_step_fails_and_the_stage_goes_on(source: DirectorySource) -> None:
    from swarmd.engine.exhaustion import is_exhaustion, is_loss

    stage = load.load_stage(source, Span(0, 4), device=DEVICE, dtype="float32", kv_memory=0)
    small, twin, large = stage.new_cache(), stage.new_cache(), stage.new_cache()
    for cache in (small, twin):
        plain_step(stage, cache, 0, 50)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    limit = torch.cuda.memory_reserved(0) + (64 << 20)
    torch.cuda.set_per_process_memory_fraction(limit / total, 0)
    try:
        with pytest.raises(torch.OutOfMemoryError) as failure:
            plain_step(stage, large, 0, 8000)
        assert is_exhaustion(failure.value)
        assert not is_loss(failure.value)
        del failure
        assert large.length == 0
        beside = plain_step(stage, small, 50, 1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
    large.truncate(0)
    assert torch.equal(beside, plain_step(stage, twin, 50, 1))
    assert plain_step(stage, large, 0, 8000).isfinite().all()


LOSE = """
import torch
from swarmd.engine.exhaustion import is_exhaustion, is_loss
try:
    torch.zeros(4, device="cuda")[torch.tensor([1 << 20], device="cuda")].cpu()
except Exception as error:
    print("first", is_loss(error), is_exhaustion(error))
try:
    torch.ones(4, device="cuda").sum().item()
except Exception as error:
    print("then", is_loss(error))
"""


@needs_cuda
def test_a_lost_device_is_told_from_want_of_memory() -> None:
    done = subprocess.run([sys.executable, "-c", LOSE], capture_output=True, text=True, timeout=120)
    assert done.stdout.split("\n")[:2] == ["first True False", "then True"], done.stderr[-2000:]


@needs_cuda
def test_a_device_is_named_with_its_number_and_absent_ones_are_refused() -> None:
    assert load.choose_device("cuda") == torch.device("cuda:0") == load.choose_device("auto")
    with pytest.raises(ConfigError, match=r"cuda:99.*torch finds cuda:0"):
        load.choose_device("cuda:99")
    dtype, reason = load.choose_dtype("auto", torch.device("cuda:0"), None)  # type: ignore[arg-type]
    assert dtype in (torch.bfloat16, torch.float32)
    assert "device" in reason


@needs_cuda
def test_products_in_float32_are_not_shortened(source: DirectorySource) -> None:
    stage = load.load_stage(source, Span(0, 4), device=DEVICE, dtype="float32", kv_memory=0)
    assert stage.precision == "float32"
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    true = a.double() @ b.double()
    error = ((a.to(DEVICE) @ b.to(DEVICE)).cpu() - true).norm() / true.norm()
    assert error < 1e-5
    signal, kernel = torch.randn(8, 64, 256), torch.randn(64, 64, 4)
    conv = torch.nn.functional.conv1d
    true = conv(signal.double(), kernel.double())
    error = (conv(signal.to(DEVICE), kernel.to(DEVICE)).cpu() - true).norm() / true.norm()
    assert error < 1e-5
