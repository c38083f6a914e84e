"""Prompts that are long, and prompts where the machine has no memory left."""

from __future__ import annotations

import asyncio
import threading

import pytest

from swarmd.cli.demo import demo_model
from swarmd.core.errors import PeerUnreachable, QueueFull
from swarmd.node.prompts import LONG_CHARS, MAX_LONG, Prompts
from swarmd.text.tokenizer import Tokenizer
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


async def test_of_very_long_texts_one_is_read_at_a_time_and_few_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_work, begun, goes_on = [0, 0], threading.Event(), threading.Event()
    """Threads that read a long text now, and that did at most."""
    encode = Tokenizer.encode

    def slowly(self: Tokenizer, text: str, add_special_tokens: bool = True) -> list[int]:
        if len(text) > LONG_CHARS:
            at_work[0] += 1
            at_work[1] = max(at_work)
            begun.set()
            assert goes_on.wait(60)
            at_work[0] -= 1
        return encode(self, text[:9000], add_special_tokens)

    monkeypatch.setattr(Tokenizer, "encode", slowly)
    prompts = Prompts(demo_model())
    long = pb.GenerateRequest(text="x" * (LONG_CHARS + 1))
    waiting = [asyncio.create_task(prompts.ids_of(long)) for _ in range(MAX_LONG)]
    await asyncio.to_thread(begun.wait, 60)
    with pytest.raises(QueueFull, match="4 texts of this length"):
        await prompts.ids_of(long)
    assert await prompts.ids_of(pb.GenerateRequest(text="def f():\n" * 1000))
    # Who leaves does not end what works for it: nobody else begins before that.
    waiting[0].cancel()
    for _ in range(5):
        await asyncio.sleep(0.01)
    goes_on.set()
    found = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert all(isinstance(ids, list) for ids in found[1:])
    assert at_work == [0, 1]
