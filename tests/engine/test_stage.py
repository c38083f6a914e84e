"""A stage's contract: where batches may enter and leave, what they must fit, what they change."""

from __future__ import annotations

import pytest
import torch

from swarmd.core.errors import ModelError, SessionError
from swarmd.core.span import Span
from swarmd.engine.load import load_stage
from swarmd.engine.stage import Batch, Segment, SequenceCache, Stage
from tests.engine import exactness
from tests.engine.architectures import ARCHITECTURES, VOCAB

BY_NAME = {str(architecture): architecture for architecture in ARCHITECTURES}


def whole(name: str = "llama") -> Stage:
    return exactness.case(BY_NAME[name]).stage(Span(0, 4))


def ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def feed(stage: Stage, cache: SequenceCache, rows: torch.Tensor, at: int) -> torch.Tensor:
    """Run rows of one session through the whole stage; return what comes out for every row."""
    every = tuple(range(len(rows)))
    entry, exit = stage.span.start, stage.span.end
    token_ids, hidden = (rows, None) if entry == 0 else (None, rows)
    return stage.forward(
        Batch(entry, exit, (Segment(cache, at, len(rows)),), token_ids, hidden, every)
    )


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "qwen2", "gpt2", "opt", "bloom", "jamba"])
def test_blocks_can_be_entered_and_left_in_the_middle_of_a_span(name: str) -> None:
    case = exactness.case(BY_NAME[name])
    tokens = torch.tensor(case.ids[0])
    wanted = feed(case.stage(Span(0, 4)), case.stage(Span(0, 4)).new_cache(), tokens, 0)
    early, late = case.stage(Span(0, 3)), case.stage(Span(1, 4))
    for middle in (1, 2, 3):
        first, last = early.new_cache(), late.new_cache()
        for at, rows in ((0, tokens[:40]), (40, tokens[40:])):
            segment = (Segment(first, at, len(rows)),)
            hidden = early.forward(Batch(0, middle, segment, token_ids=rows))
            segment = (Segment(last, at, len(rows)),)
            every = tuple(range(len(rows)))
            got = late.forward(Batch(middle, 4, segment, hidden=hidden, logits_at=every))
            torch.testing.assert_close(got, wanted[at : at + len(rows)], rtol=0, atol=1e-4)


def test_a_stretch_of_a_span_keeps_kv_only_for_its_own_blocks() -> None:
    stage = whole()
    short, long = stage.new_cache(), stage.new_cache()
    stage.forward(Batch(0, 1, (Segment(short, 0, 5),), token_ids=ids(5)))
    feed(stage, long, ids(5), 0)
    assert short.nbytes * 4 == long.nbytes > 0


def test_blocks_outside_the_span_are_refused() -> None:
    stage = exactness.case(BY_NAME["llama"]).stage(Span(1, 3))
    hidden = torch.zeros(2, stage.hidden_size)
    for entry, exit in ((0, 3), (1, 4), (2, 2), (3, 2)):
        batch = Batch(entry, exit, (Segment(stage.new_cache(), 0, 2),), ids(2), hidden)
        with pytest.raises(ModelError, match="1:3"):
            stage.forward(batch)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (torch.tensor([2, VOCAB]), f"token ids 2 to {VOCAB}"),
        (torch.tensor([-1, 5]), "token ids -1 to 5"),
        (torch.tensor([1, 2, 3]), "needs rows"),
        (None, "needs rows"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: torch.Tensor | None, problem: str) -> None:
    stage = whole()
    cache = stage.new_cache()
    with pytest.raises(SessionError, match=problem):
        stage.forward(Batch(0, 4, (Segment(cache, 0, 2),), rows))
    assert cache.length == 0


def test_hidden_states_of_another_width_are_refused() -> None:
    stage = exactness.case(BY_NAME["llama"]).stage(Span(1, 3))
    batch = Batch(1, 3, (Segment(stage.new_cache(), 0, 2),), hidden=torch.zeros(2, 47))
    with pytest.raises(SessionError, match="48"):
        stage.forward(batch)


@pytest.mark.parametrize("position", [0, 3, 5])
def test_a_step_that_does_not_begin_where_its_session_ends_is_refused(position: int) -> None:
    stage = whole()
    cache = stage.new_cache()
    feed(stage, cache, ids(4), 0)
    with pytest.raises(SessionError, match="holds 4 positions"):
        feed(stage, cache, ids(2), position)
    assert cache.length == 4


def test_positions_beyond_the_models_length_are_refused() -> None:
    case = exactness.case(BY_NAME["llama"])
    stage = load_stage(case.source, Span(0, 1), dtype="float32", kv_memory=0, max_model_len=8)
    cache = stage.new_cache()
    feed(stage, cache, ids(8), 0)
    with pytest.raises(SessionError, match="beyond the 8"):
        feed(stage, cache, ids(1), 8)


def test_logits_come_only_for_the_rows_that_want_them() -> None:
    stage = whole()
    tokens = ids(9)
    every = feed(stage, stage.new_cache(), tokens, 0)
    assert every.shape == (9, VOCAB)
    assert every.dtype == torch.float32
    for wanted in ((), (8,), (2, 5), (0, 1, 8)):
        segment = Segment(stage.new_cache(), 0, 9)
        got = stage.forward(Batch(0, 4, (segment,), tokens, None, wanted))
        torch.testing.assert_close(got, every[list(wanted)], rtol=0, atol=1e-5)


def test_the_head_runs_only_where_logits_are_wanted() -> None:
    stage = whole()
    seen: list[tuple[int, ...]] = []
    head = stage.view(0, 4).model.lm_head
    handle = head.register_forward_hook(lambda _, args, __: seen.append(tuple(args[0].shape)))
    stage.forward(Batch(0, 4, (Segment(stage.new_cache(), 0, 9),), ids(9), None, (3, 8)))
    handle.remove()
    assert seen == [(1, 2, stage.hidden_size)]


def test_single_tokens_of_one_session_in_one_row_are_what_they_were_one_by_one() -> None:
    stage = whole("mistral")
    tokens = ids(30)
    one, row = stage.new_cache(), stage.new_cache()
    wanted = [feed(stage, one, tokens[:20], 0)]
    wanted += [feed(stage, one, tokens[at : at + 1], at) for at in range(20, 30)]
    got = [feed(stage, row, tokens[:20], 0)]
    segments = tuple(Segment(row, at, 1) for at in range(20, 30))
    got.append(stage.forward(Batch(0, 4, segments, tokens[20:], None, tuple(range(10)))))
    torch.testing.assert_close(torch.cat(got), torch.cat(wanted), rtol=0, atol=1e-5)
    assert row.length == one.length == 30


@pytest.mark.parametrize("name", ["llama", "mistral", "bloom", "gptj", "recurrent_gemma"])
def test_a_truncated_session_goes_on_from_where_it_says(name: str) -> None:
    stage = whole(name)
    tokens = ids(30)
    straight, rewound = stage.new_cache(), stage.new_cache()
    feed(stage, straight, tokens[:12], 0)
    wanted = feed(stage, straight, tokens[12:20], 12)
    feed(stage, rewound, tokens[:12], 0)
    feed(stage, rewound, ids(10, seed=9), 12)
    reached = rewound.truncate(12)
    assert reached == rewound.length
    assert reached in (0, 12)
    if reached == 0:
        feed(stage, rewound, tokens[:12], 0)
    torch.testing.assert_close(feed(stage, rewound, tokens[12:20], 12), wanted, rtol=0, atol=1e-4)


def test_what_cannot_be_rewound_says_so() -> None:
    for name, wanted in (("llama", 6), ("bloom", 6), ("mamba", 0), ("recurrent_gemma", 0)):
        stage = whole(name)
        cache = stage.new_cache()
        feed(stage, cache, ids(8), 0)
        assert cache.truncate(6) == wanted, name
        assert cache.truncate(100) == wanted, name
        assert cache.truncate(0) == 0
        assert cache.length == 0


def test_a_failed_forward_advances_nobody() -> None:
    stage = whole()
    first, second = stage.new_cache(), stage.new_cache()
    feed(stage, first, ids(4), 0)
    wanted = feed(stage, stage.new_cache(), ids(4), 0)
    block = stage.layout.blocks_of(stage.view(0, 4).model)[2]
    handle = block.register_forward_pre_hook(_fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        stage.forward(Batch(0, 4, (Segment(first, 4, 1), Segment(second, 0, 4)), ids(5)))
    handle.remove()
    assert (first.length, second.length) == (4, 0)
    torch.testing.assert_close(feed(stage, second, ids(4), 0), wanted)


def _fail(*_: object) -> None:
    raise RuntimeError("out of memory")


def test_a_linear_never_sees_a_single_row() -> None:
    stage = whole()
    rows: list[int] = []
    model = stage.view(0, 4).model
    handles = [
        module.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[1]))
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    cache = stage.new_cache()
    feed(stage, cache, ids(1), 0)
    assert set(rows) == {2}
    assert cache.length == 1
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("span", [Span(0, 2), Span(1, 3), Span(2, 4)], ids=str)
def test_gradients_flow_through_the_plain_path(span: Span) -> None:
    stage = exactness.case(BY_NAME["llama"]).stage(span)
    feed(stage, stage.new_cache(), _rows_for(stage, 3), 0)
    rows = torch.stack([_rows_for(stage, 6), _rows_for(stage, 6)])
    parameter = next(stage.layout.blocks_of(stage.model)[0].parameters())
    parameter.requires_grad_(True)
    parameter.grad = None
    if rows.is_floating_point():
        rows.requires_grad_(True)
    output = stage.forward_plain(rows)
    assert output.shape == (2, 6, VOCAB if stage.is_last else stage.hidden_size)
    output.pow(2).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.abs().sum() > 0
    if rows.is_floating_point():
        assert rows.grad is not None
        assert rows.grad.abs().sum() > 0
    parameter.requires_grad_(False)


def _rows_for(stage: Stage, count: int) -> torch.Tensor:
    return ids(count) if stage.is_first else torch.randn(count, stage.hidden_size)


def test_the_plain_path_agrees_with_the_cached_one() -> None:
    for name in ("llama", "gemma2", "recurrent_gemma"):
        stage = whole(name)
        tokens = ids(12)
        cached = feed(stage, stage.new_cache(), tokens, 0)
        torch.testing.assert_close(stage.forward_plain(tokens[None])[0], cached, rtol=0, atol=1e-4)


def test_kv_bytes_count_what_a_session_really_holds() -> None:
    stage = whole("deepseek_v3")
    cache = stage.new_cache()
    feed(stage, cache, ids(64), 0)
    assert stage.kv_bytes(64, 0, 4) == cache.nbytes
    assert stage.kv_bytes(64, 1, 2) * 4 == cache.nbytes
    assert stage.kv_bytes_fixed == 0


def test_kv_bytes_of_recurrent_blocks_do_not_grow() -> None:
    stage = whole("mamba")
    assert stage.kv_bytes_per_token == 0
    assert stage.kv_bytes(10, 0, 4) == stage.kv_bytes(1000, 0, 4) > 0


def test_an_architecture_that_enters_in_the_middle_still_runs_one_by_one() -> None:
    stage = exactness.case(BY_NAME["bloom"]).stage(Span(0, 4))
    cache = stage.new_cache()
    stage.forward(Batch(0, 2, (Segment(cache, 0, 2),), ids(2)))
    with pytest.raises(ModelError, match="cannot go on"):
        stage.forward(Batch(0, 3, (Segment(cache, 2, 2),), ids(2)))
