"""What a request asks for is counted before it takes any time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from swarmd.core.errors import PromptTooLong, RequestError
from swarmd.node.kept import Kept
from swarmd.node.requests import MAX_WAITED_S, parse
from swarmd.toys import toy_model
from swarmd.v1 import inference_pb2 as pb


class Many(Sequence[int]):
    """Ids of which none may be looked at: each would hold up the streams of others."""

    def __len__(self) -> int:
        return 1_000_000_000

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("an id is looked at")


def test_a_prompt_that_is_too_long_is_counted_only() -> None:
    kept = Kept(bytes(16), bytes(16), (1, 2), prompt_tokens=2, chunk_size=6)
    for past, count in ((None, "1000000000"), (kept, "1000000002")):
        with pytest.raises(PromptTooLong, match=f"the prompt has {count} tokens"):
            parse(pb.GenerateRequest(text="x"), toy_model(), Many(), past)


@pytest.mark.parametrize(
    ("said", "taken"),
    [(0.0, 0.0), (2.5, 2.5), (-1.0, 0.0), (float("nan"), 0.0), (float("inf"), MAX_WAITED_S)],
)
def test_how_long_a_client_has_waited_is_taken_within_reason(said: float, taken: float) -> None:
    place = {"session": bytes(16), "secret": bytes(16), "chunk_size": 64, "epoch": 1}
    resume = pb.ResumeFrom(**place, prompt_ids=[1], waited_s=said)
    resumption = parse(pb.GenerateRequest(resume=resume), toy_model(), ()).resume
    assert resumption is not None
    assert resumption.waited_s == taken


def test_a_resumption_after_more_than_the_model_holds_is_refused() -> None:
    model = toy_model()
    resume = pb.ResumeFrom(
        session=bytes(16),
        secret=bytes(16),
        chunk_size=64,
        epoch=1,
        prompt_ids=[1],
        output_ids=[model.vocab_size] * (model.max_model_len + 1),
    )
    with pytest.raises(RequestError, match=f"after more than {model.max_model_len} ids of output"):
        parse(pb.GenerateRequest(resume=resume), model, ())
