"""However a model is split and whoever shares its microbatches, it says what it says whole."""

from __future__ import annotations

import pytest

from tests.engine import exactness
from tests.engine.architectures import ARCHITECTURES, ONE_BY_ONE, RAGGED, Architecture


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=str)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    param: Architecture = request.param
    return param


def test_every_split_generates_what_the_whole_model_does(architecture: Architecture) -> None:
    case = exactness.case(architecture)
    assert len(set(case.ids[0][exactness.PROMPT :])) >= 12, "a loop of few ids proves nothing"
    for cuts in exactness.CUTS:
        session = exactness.run_one(case.chain(cuts), case.ids[0][: exactness.PROMPT])
        exactness.assert_as_generated(session, case.ids[0], case.logits[0])


def test_four_sessions_share_microbatches_and_none_notices(architecture: Architecture) -> None:
    case = exactness.case(architecture)
    prompts = [ids[: exactness.PROMPT] for ids in case.ids]
    for cuts in exactness.CUTS:
        sessions = exactness.run_together(case.chain(cuts), prompts)
        for session, ids, logits in zip(sessions, case.ids, case.logits, strict=True):
            exactness.assert_as_generated(session, ids, logits)


def test_the_probe_finds_who_can_share_forwards(architecture: Architecture) -> None:
    stage = exactness.case(architecture).chain((0, 4))[0]
    assert stage.ragged == (architecture in RAGGED)
    assert bool(stage.ragged_reason) == (architecture in ONE_BY_ONE)


def test_there_are_enough_architectures() -> None:
    assert len(ARCHITECTURES) >= 25
    assert len(RAGGED) >= 20
