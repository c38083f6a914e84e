"""Chat templates: messages to the text that a model was trained on, rendered in a child process.

What a template may do there is `swarmd.text.chat_child`'s; the ids of the text are
`swarmd.text.tokenizer`'s (`encode(text, add_special_tokens=False)`: templates write their own).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from swarmd.core.errors import ModelError, QueueFull, RequestError
from swarmd.text.chat_process import ChatLimits, ChatProcess
from swarmd.text.model_files import (
    named_special_tokens,
    read_json,
    read_text,
    read_tokenizer_config,
)

MAX_TEMPLATE_BYTES = 1 << 20


class ChatTemplate:
    """A model's chat template. `render` blocks, so call it from a thread; any number may call.

    The child is started by the first rendering and kept for the next; one that ran out of time or
    memory, or died, is replaced. Close it, or use it as a context manager.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        *,
        special_tokens: Mapping[str, str] | None = None,
        limits: ChatLimits | None = None,
    ) -> None:
        self._templates = dict(templates)
        self._special_tokens = dict(special_tokens or {})
        self._limits = limits or ChatLimits()
        self._turn = threading.Lock()
        self._child: ChatProcess | None = None

    @classmethod
    def from_dir(cls, path: str | Path, *, limits: ChatLimits | None = None) -> ChatTemplate:
        """Load from a directory in Hugging Face layout; a model without a template loads, too.

        Raises ModelError when a file is damaged or a template larger than 1 MiB.
        """
        directory = Path(path)
        config = read_tokenizer_config(directory)
        templates = _template_files(directory) or _templates_in(config)
        if not templates:
            templates = _templates_in(read_json(directory / "chat_template.json"))
        return cls(templates, special_tokens=named_special_tokens(config), limits=limits)

    @property
    def available(self) -> bool:
        """Whether the model has a chat template."""
        return bool(self._templates)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text of a chat; messages are `{"role": ..., "content": ...}`, plain JSON.

        `variables` are the template's own, such as `enable_thinking`. Raises RequestError when the
        model has no template, the template refuses the messages or exceeds a limit, or the input
        is not JSON or too large; QueueFull when earlier renderings take too long; CapacityError
        when the machine cannot start another process.
        """
        request = self._request(messages, add_generation_prompt, tools, variables or {})
        answer = self._exchange(request)
        if "text" not in answer:
            raise RequestError(f"the chat template refuses this chat: {answer.get('error')}")
        return str(answer["text"])

    def close(self) -> None:
        """End the child. A later rendering starts another."""
        with self._turn:
            self._drop_child()

    def __enter__(self) -> ChatTemplate:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def _request(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> bytes:
        template = self._choose(with_tools=bool(tools))
        _check_messages(messages)
        every = {
            **self._special_tokens,
            **variables,
            "tools": tools,
            "documents": variables.get("documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        data = _as_json({"messages": messages, "variables": every})
        if len(data) > self._limits.input_bytes:
            raise RequestError(
                f"the chat has {len(data)} bytes, at most {self._limits.input_bytes} are allowed"
            )
        return data[:-1] + b', "template": ' + json.dumps(template).encode() + b"}"

    def _choose(self, *, with_tools: bool) -> str:
        if not self._templates:
            raise RequestError(
                "this model has no chat template: send a prompt instead of messages, "
                "or put a chat_template.jinja into the model's directory"
            )
        name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise RequestError(
                f"this model has no default chat template, only {', '.join(self._templates)}"
            )
        return self._templates[name]

    def _exchange(self, request: bytes) -> dict[str, Any]:
        if not self._turn.acquire(timeout=self._limits.wait_s):
            raise QueueFull(
                f"other chats have kept the template busy for {self._limits.wait_s:g} s",
                retry_after_s=self._limits.deadline_s,
            )
        try:
            return self._exchange_now(request)
        finally:
            self._turn.release()

    def _exchange_now(self, request: bytes) -> dict[str, Any]:
        if self._child is None or not self._child.alive:
            self._drop_child()
            self._child = ChatProcess(self._limits)
        child = self._child
        answer = child.ask(request)
        if child.expired or answer is None or answer.get("fatal"):
            self._drop_child()
        if answer is not None:
            return answer
        if child.expired:
            raise RequestError(
                f"the chat template took longer than {self._limits.deadline_s:g} s and was stopped"
            )
        raise RequestError("the chat template crashed its process: too much CPU time or memory")

    def _drop_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()


def _template_files(directory: Path) -> dict[str, str]:
    """Return the templates that stand in files of their own; the default one rules the others."""
    default = _read_template(directory / "chat_template.jinja")
    found = {} if default is None else {"default": default}
    for path in sorted((directory / "additional_chat_templates").glob("*.jinja"))[:32]:
        template = _read_template(path)
        if template is not None:
            found[path.stem] = template
    return found


def _read_template(path: Path) -> str | None:
    return read_text(path, MAX_TEMPLATE_BYTES)


def _templates_in(config: Mapping[str, Any]) -> dict[str, str]:
    """Return what stands under `chat_template`: one template, or a list of named ones."""
    value = config.get("chat_template")
    if value is None:
        return {}
    entries = [{"name": "default", "template": value}] if isinstance(value, str) else value
    try:
        templates = {str(entry["name"]): entry["template"] for entry in entries}
    except (TypeError, KeyError) as error:
        raise ModelError("chat_template must be a string or a list of named templates") from error
    for name, template in templates.items():
        if not isinstance(template, str) or len(template) > MAX_TEMPLATE_BYTES:
            raise ModelError(
                f"chat template {name!r} must be a string of at most {MAX_TEMPLATE_BYTES} bytes"
            )
    return templates


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    if isinstance(messages, (str, bytes, Mapping)) or not messages:
        raise RequestError("messages must be a list with at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f'message {index} must be an object with a "role"')


def _as_json(value: object) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"messages, tools and variables must be plain JSON: {error}") from error
