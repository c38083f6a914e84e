"""The public door is small and counted, and opens without torch, hivemind or transformers."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from scripted_node import ScriptedNode, serving
from without_extras import BLOCKER

import swarmd
from swarmd.core import errors


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BLOCKER + code, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_all_names_what_is_there() -> None:
    assert sorted(swarmd.__all__) == swarmd.__all__ == dir(swarmd)
    for name in swarmd.__all__:
        assert getattr(swarmd, name) is not None
    assert not hasattr(swarmd, "torch")


def test_every_error_can_be_caught_by_its_name_at_the_door() -> None:
    """All of them: whatever a node raises, its clients meet as the same class."""
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.SwarmdError)
    ]
    assert len(kinds) > 20
    for kind in kinds:
        assert kind.__name__ in swarmd.__all__, kind
        assert getattr(swarmd, kind.__name__) is kind


def test_importing_the_door_brings_in_nothing_heavy() -> None:
    code = "import swarmd; print([n for n in ('grpc', 'typer', 'rich') if n in sys.modules])"
    done = run(code)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_blocker_blocks() -> None:
    assert "torch is not installed here" in run("import torch").stderr


async def test_the_client_runs_where_torch_is_not_installed() -> None:
    code = """
import swarmd
with swarmd.Client(sys.argv[1]) as client:
    stream = client.generate("p", max_tokens=3)
    print([t.id for t in stream], stream.result.text)
    print(client.status().peer[:4], client.tokenize("a"))
"""
    node = ScriptedNode()
    async with serving(node):
        done = await asyncio.to_thread(run, code, node.address)
    assert done.stderr == ""
    assert done.stdout == "[100, 101, 102] w0 w1 w2 \naaaa [1, 97]\n"
