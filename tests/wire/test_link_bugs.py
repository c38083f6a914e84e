"""Errors of this node: logged with their traceback, and met at the link that brought them out."""

from __future__ import annotations

import asyncio

import frame_values as values
import pytest
from wire_nodes import A, B, C, Node


@pytest.mark.parametrize("dials", ["we dial", "it dials"])
async def test_a_handler_that_fails_ends_only_that_link(
    caplog: pytest.LogCaptureFixture, dials: str
) -> None:
    view: dict[str, str] = {}
    async with Node(A, view) as a, Node(B, view) as b, Node(C, view) as c:
        a.handler.errors[B] = KeyError("a bug")
        c.links.send(A, [values.close(1)])
        await a.handler.frames_from(C, 1)
        if dials == "we dial":
            a.links.send(B, [values.close(1)])
            await b.handler.frames_from(A, 1)
        b.links.send(A, [values.close(1)])
        assert "KeyError('a bug')" in await a.handler.loss_of(B)
        c.links.send(A, [values.close(2)])
        await a.handler.frames_from(C, 2)
        assert [peer for peer, _ in a.handler.lost] == [B]
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "on_frames" in caplog.text
    assert B in record.getMessage()


async def test_a_handler_that_fails_to_take_a_loss_does_not_end_the_node(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Node(A, {}) as a:
        failed = asyncio.Event()

        def fail(peer_id: str, reason: str) -> None:
            failed.set()
            raise RuntimeError("a bug")

        a.handler.on_peer_lost = fail  # type: ignore[method-assign]
        a.links.send(B, [values.close(1)])
        async with asyncio.timeout(20):
            await failed.wait()
            await asyncio.wait(a.tasks)
    assert "RuntimeError: a bug" in caplog.text


async def test_a_view_that_fails_is_a_peer_that_cannot_be_dialled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Node(A, {}) as a:
        a.view = None  # type: ignore[assignment]
        a.links.send(B, [values.close(1)])
        assert "AttributeError" in await a.handler.loss_of(B)
    assert "dialling failed" in caplog.text
