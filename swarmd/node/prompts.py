"""Prompts to ids: text, chats or ids as a client sent them, by the served model's own tokenizer.

Tokenising and rendering are `swarmd.text`'s; a node whose model has no tokenizer serves ids only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from swarmd.core.errors import ModelError, PeerUnreachable, RequestError
from swarmd.node.gate import Gate
from swarmd.text.chat import ChatTemplate
from swarmd.text.tokenizer import Tokenizer
from swarmd.v1 import inference_pb2 as pb

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")

_INLINE_CHARS = 4096
LONG_CHARS = 1 << 18
"""Texts beyond that take seconds and a hundred bytes of memory a character: one at a time."""
MAX_LONG = 4
"""So many of them are at work or wait for it."""


class Prompts:
    """The served model's tokenizer and chat template."""

    def __init__(self, files_dir: Path) -> None:
        self.tokenizer: Tokenizer | None = None
        self._missing = ""
        self._long = Gate("texts of this length are read", MAX_LONG)
        self._reading = asyncio.Lock()
        try:
            self.tokenizer = Tokenizer.from_dir(files_dir)
        except ModelError as error:
            self._missing = str(error)
            log.warning("no tokenizer, so token ids only reason=%s", error)
        self._chat = ChatTemplate.from_dir(files_dir)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generation by the model's own files."""
        return tuple(self.tokenizer.eos_token_ids) if self.tokenizer else ()

    async def ids_of(self, request: pb.GenerateRequest) -> Sequence[int]:
        """Return the prompt's ids; empty for a resumption. Raises RequestError, or QueueFull.

        Text that follows a kept session begins without special tokens.
        """
        if request.HasField("resume"):
            return ()
        kind = request.WhichOneof("prompt")
        if kind == "token_ids":
            return request.token_ids.ids
        if kind == "text":
            return await self._encode(request.text, special=not request.HasField("continue_from"))
        if kind == "chat":
            return await self._chat_ids(request.chat)
        raise RequestError("the request has no prompt: give text, token ids or a chat")

    async def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeReply:
        """Answer a client's `Tokenize`. Raises RequestError, or QueueFull."""
        kind = request.WhichOneof("input")
        if kind == "token_ids":
            given = request.token_ids.ids
            many = len(given) > _INLINE_CHARS
            text = await _aside(self.text_of, given) if many else self.text_of(given)
            return pb.TokenizeReply(ids=given, text=text)
        if kind == "chat":
            return pb.TokenizeReply(ids=await self._chat_ids(request.chat))
        if kind is None:
            raise RequestError("there is nothing to tokenize: give text, a chat or token ids")
        ids = await self._encode(request.text, special=request.add_special_tokens)
        return pb.TokenizeReply(ids=ids, text=request.text)

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included; empty without a tokenizer."""
        return self.tokenizer.decode(ids, False) if self.tokenizer else ""

    async def _encode(self, text: str, *, special: bool) -> Sequence[int]:
        tokenizer = self._required()
        if len(text) <= _INLINE_CHARS:
            return tokenizer.encode(text, special)
        # That takes milliseconds: off the loop, which feeds everybody's streams.
        if len(text) <= LONG_CHARS:
            return await _aside(tokenizer.encode, text, special)
        with self._long.enter():
            await self._reading.acquire()
            work = asyncio.create_task(_aside(tokenizer.encode, text, special))
            work.add_done_callback(self._has_read)  # a client that leaves does not end the thread
            return await asyncio.shield(work)

    def _has_read(self, work: asyncio.Task[list[int]]) -> None:
        self._reading.release()
        if not work.cancelled():
            work.exception()  # nobody else may be there to take it

    async def _chat_ids(self, chat: pb.Chat) -> Sequence[int]:
        messages = [{"role": m.role, "content": m.content} for m in chat.messages]
        text = await _aside(self._chat.render, messages)
        return await self._encode(text, special=False)

    def _required(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(f"this model takes token ids only: {self._missing}")
        return self.tokenizer

    def close(self) -> None:
        """End the process that renders templates."""
        self._chat.close()


async def _aside(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call it on another thread. Raises PeerUnreachable where there is no memory for one."""
    try:
        return await asyncio.to_thread(function, *args, **kwargs)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "start new thread" not in str(error):
            raise
        log.warning("a prompt was refused for want of memory error=%s", error)
        raise PeerUnreachable(
            "this node has no memory left to read a prompt: ask another one"
        ) from error
