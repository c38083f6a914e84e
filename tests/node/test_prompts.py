"""Prompts where the machine has no memory left."""

from __future__ import annotations

import threading

import pytest

from swarmd.cli.demo import demo_model
from swarmd.core.errors import PeerUnreachable
from swarmd.node.prompts import Prompts
from swarmd.v1 import inference_pb2 as pb


async def test_a_prompt_for_which_no_thread_can_be_started_sends_the_client_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = Prompts(demo_model())
    request = pb.GenerateRequest(text="def f():\n" * 1000)

    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        with pytest.raises(PeerUnreachable, match="no memory left"):
            await prompts.ids_of(request)
    assert await prompts.ids_of(request)
