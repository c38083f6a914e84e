"""A name, a digest, or both: which model of the swarm a client means."""

from __future__ import annotations

import pytest

from swarmd.core.errors import AmbiguousModel, UnknownModel
from swarmd.core.peers import Announcement, ModelInfo, NodeState
from swarmd.core.span import Span
from swarmd.node.served_names import find, means
from swarmd.swarm.view import View

NOW = 1_000_000.0
ONE, TWO = "1" * 64, "2" * 60 + "1111"


def model(name: str, digest: str) -> ModelInfo:
    return ModelInfo(name, digest, 8, 64, 100, 512)


def swarm(*peers: tuple[str, str, int, int]) -> View:
    """A view of serving peers, each given by name, digest and blocks."""
    return View(
        (
            Announcement(
                peer_id=f"{n:040x}",
                address=f"10.0.0.{n}:7420",
                model=model(name, digest),
                span=Span(start, end),
                state=NodeState.SERVING,
                issued_at=NOW,
                expires_at=NOW + 30,
            )
            for n, (name, digest, start, end) in enumerate(peers, start=1)
        ),
        NOW,
    )


@pytest.mark.parametrize(
    ("asked", "yes"),
    [
        ("", True),
        ("a", True),
        (ONE, True),
        (f"a@{ONE[:8]}", True),
        (f"a@{ONE}", True),
        (f"a@{ONE[:7]}", False),
        (f"a@{TWO[:8]}", False),
        (f"b@{ONE[:8]}", False),
        (f"@{ONE[:8]}", False),
        (ONE[:8], False),
        ("b", False),
    ],
)
def test_a_node_knows_its_own_model(asked: str, yes: bool) -> None:
    assert means(asked, model("a", ONE)) is yes


def test_a_name_may_contain_the_mark_itself() -> None:
    assert means("a@beefbeef", model("a@beefbeef", ONE))
    assert means(f"a@beefbeef@{ONE[:8]}", model("a@beefbeef", ONE))


def test_models_of_different_names_are_found_by_name_and_digest() -> None:
    view = swarm(("a", ONE, 0, 8), ("b", TWO, 0, 4))
    for asked, digest in (("a", ONE), ("b", TWO), (TWO, TWO), (f"b@{TWO[:12]}", TWO)):
        assert find(view, asked).digest == digest
    with pytest.raises(UnknownModel, match="serves 'c'; models here: a, b"):
        find(view, "c")
    with pytest.raises(UnknownModel, match="serves 'a@22222222'"):
        find(view, f"a@{TWO[:8]}")


def test_namesakes_are_told_apart_by_digest_only() -> None:
    view = swarm(("a", ONE, 0, 8), ("a", TWO, 0, 4), ("a", TWO, 4, 8))
    with pytest.raises(AmbiguousModel) as refused:
        find(view, "a")
    assert str(refused.value) == (
        f"'a' stands for 2 models here: ask for a@{ONE[:12]}, a@{TWO[:12]}"
    )
    assert find(view, f"a@{TWO[:12]}").digest == TWO
    with pytest.raises(UnknownModel, match=f"models here: a@{ONE[:12]}, a@{TWO[:12]}"):
        find(view, "c")


def test_of_namesakes_the_only_whole_one_is_meant() -> None:
    assert find(swarm(("a", ONE, 0, 8), ("a", TWO, 0, 4)), "a").digest == ONE
    with pytest.raises(AmbiguousModel):
        find(swarm(("a", ONE, 0, 7), ("a", TWO, 0, 4)), "a")


def test_a_model_goes_by_every_name_that_its_holders_give_it() -> None:
    view = swarm(("a", ONE, 0, 4), ("b", ONE, 4, 8))
    assert find(view, "a").digest == find(view, "b").digest == ONE


def test_nobody_is_there() -> None:
    with pytest.raises(UnknownModel, match="models here: none"):
        find(swarm(), "a")
