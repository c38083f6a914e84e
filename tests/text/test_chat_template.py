"""Rendered chats equal transformers', and a hostile template harms nobody."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pytest
from chat_templates import CHATS, TEMPLATES, TOOLS, Chat  # type: ignore[import-not-found]
from tokenizer_kinds import write_json  # type: ignore[import-not-found]

from swarmd.core.errors import CapacityError, ModelError, QueueFull, RequestError
from swarmd.text import chat_child, chat_process
from swarmd.text.chat import MAX_TEMPLATE_BYTES, ChatTemplate
from swarmd.text.chat_process import ChatLimits

HELLO: Chat = [{"role": "user", "content": "hello"}]
ECHO = "{{ messages[0].content }}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
# Rendered when the message asks for it, so that one process sees both.
TWO_FACED = "{% if messages[0].content == 'attack' %}ATTACK{% else %}fine{% endif %}"


@pytest.fixture(scope="module")
def shared() -> Iterator[ChatTemplate]:
    """One object for many templates: the child compiles whatever it is sent."""
    with ChatTemplate({"default": ECHO}) as template:
        yield template


def render(shared: ChatTemplate, template: str, messages: Chat = HELLO, **options: Any) -> str:
    shared._templates = {"default": template}
    return shared.render(messages, **options)


def their_tokenizer(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


def apply(directory: Path, messages: Chat, **options: Any) -> str:
    theirs = their_tokenizer(directory)
    return str(theirs.apply_chat_template(messages, tokenize=False, **options))


def with_template(directory: Path, template: object) -> Path:
    config = json.loads((directory / "tokenizer_config.json").read_text())
    write_json(
        directory / "tokenizer_config.json",
        config | {"chat_template": template, "unk_token": "</s>"},
    )
    return directory


def outcome(call: Any) -> str:
    try:
        return str(call())
    except jinja2.TemplateError as error:
        return f"the chat template refuses this chat: {error.message}"
    except RequestError as error:
        return str(error)


@pytest.mark.parametrize("name", TEMPLATES)
def test_chats_are_rendered_as_transformers_does(model_dir: Path, name: str) -> None:
    directory = with_template(model_dir, TEMPLATES[name])
    theirs = their_tokenizer(directory)
    with ChatTemplate.from_dir(directory) as ours:
        for chat, tools, prompt in itertools.product(CHATS, (None, TOOLS), (True, False)):
            options: dict[str, Any] = {"add_generation_prompt": prompt, "tools": tools}
            apply = partial(theirs.apply_chat_template, CHATS[chat], tokenize=False, **options)
            assert outcome(partial(ours.render, CHATS[chat], **options)) == outcome(apply), chat


def test_the_templates_own_variables_reach_it(model_dir: Path) -> None:
    directory = with_template(model_dir, TEMPLATES["qwen"])
    with ChatTemplate.from_dir(directory) as ours:
        text = ours.render(HELLO, variables={"enable_thinking": False})
    assert text == apply(directory, HELLO, add_generation_prompt=True, enable_thinking=False)
    assert "</think>" in text


def test_the_template_refusing_a_chat_is_a_request_error(shared: ChatTemplate) -> None:
    with pytest.raises(RequestError, match="roles must alternate"):
        render(shared, TEMPLATES["mistral"], CHATS["wrong_order"])


def test_a_model_without_a_template_says_so(model_dir: Path) -> None:
    with ChatTemplate.from_dir(model_dir) as template:
        assert not template.available
        with pytest.raises(RequestError, match=r"no chat template.*chat_template\.jinja"):
            template.render(HELLO)


# Where templates stand


def test_a_file_of_its_own_rules_the_config_which_rules_the_old_json(model_dir: Path) -> None:
    write_json(model_dir / "chat_template.json", {"chat_template": "json"})
    assert rendered(model_dir) == "json"
    with_template(model_dir, "config")
    assert rendered(model_dir) == apply(model_dir, HELLO) == "config"
    (model_dir / "chat_template.jinja").write_text("file")
    assert rendered(model_dir) == apply(model_dir, HELLO) == "file"


def test_a_named_template_serves_tools(model_dir: Path) -> None:
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    with_template(model_dir, named)
    assert rendered(model_dir) == apply(model_dir, HELLO) == "plain"
    assert rendered(model_dir, tools=TOOLS) == apply(model_dir, HELLO, tools=TOOLS) == "tools"
    (model_dir / "chat_template.jinja").write_text("file")
    (model_dir / "additional_chat_templates").mkdir()
    (model_dir / "additional_chat_templates" / "tool_use.jinja").write_text("tool file")
    assert rendered(model_dir) == apply(model_dir, HELLO) == "file"
    assert rendered(model_dir, tools=TOOLS) == apply(model_dir, HELLO, tools=TOOLS) == "tool file"


def rendered(directory: Path, **options: Any) -> str:
    with ChatTemplate.from_dir(directory) as template:
        return template.render(HELLO, **options)


def test_templates_without_a_default_name_what_there_is(model_dir: Path) -> None:
    with_template(model_dir, [{"name": "rag", "template": "x"}])
    with pytest.raises(RequestError, match="only rag"):
        rendered(model_dir)


@pytest.mark.parametrize(
    "value", [7, [7], [{"name": "default"}], {"a": "b"}, "x" * (MAX_TEMPLATE_BYTES + 1)]
)
def test_malformed_templates_are_model_errors(model_dir: Path, value: object) -> None:
    with pytest.raises(ModelError):
        ChatTemplate.from_dir(with_template(model_dir, value))


# Input


@pytest.mark.parametrize(
    "messages",
    [[], "hello", {"role": "user"}, ["hello"], [{"content": "x"}], [{"role": 7, "content": "x"}]],
)
def test_malformed_messages_are_refused(shared: ChatTemplate, messages: Any) -> None:
    with pytest.raises(RequestError, match="message"):
        render(shared, ECHO, messages)


@pytest.mark.parametrize("content", [float("nan"), object(), b"bytes"])
def test_content_that_is_not_json_is_refused(shared: ChatTemplate, content: object) -> None:
    with pytest.raises(RequestError, match="plain JSON"):
        render(shared, ECHO, [{"role": "user", "content": content}])


def test_deeply_nested_content_is_no_crash_and_the_next_chat_is_rendered(
    shared: ChatTemplate,
) -> None:
    for depth in (900, 2_000, 100_000):
        nested: list[Any] = []
        for _ in range(depth):
            nested = [nested]
        with suppress(RequestError):  # any other error fails the test
            render(shared, "{{ messages|tojson }}", [{"role": "user", "content": nested}])
        while nested:  # take it apart by hand: so deep a list can overflow the collector's stack
            nested = nested[0]
    assert render(shared, ECHO) == "hello"


def test_a_chat_over_the_limit_is_refused() -> None:
    with (
        ChatTemplate({"default": ECHO}, limits=ChatLimits(input_bytes=1000)) as template,
        pytest.raises(RequestError, match="at most 1000"),
    ):
        template.render([{"role": "user", "content": "x" * 1000}])


def test_a_large_chat_passes_through_the_pipes(shared: ChatTemplate) -> None:
    content = "é\n" * 500_000
    assert render(shared, ECHO, [{"role": "user", "content": content}]) == content


# Hostile templates


ATTACKS = {
    "long range": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    "memory while compiling": ("{{ 'a' * 10**10 }}", "memory limit"),
    "memory": ("{{ 'a' * (messages|length * 10**10) }}", "memory limit"),
    "memory by format": ("{{ '%1000000000d' % 3 }}", "memory limit"),
    "memory by doubling": (
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}"
        "{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "memory limit",
    ),
    "output": ("{{ 'a' * 9000000 }}", "at most 8388608"),
    "recursion": ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion limit"),
    "parser": ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "recursion limit"),
    "class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "globals": ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
    "helper's globals": ("{{ raise_exception.__globals__['sys'] }}", "unsafe"),
    "filter": ("{{ (messages | attr('__class__')).__base__ }}", "unsafe"),
    "format": ("{{ '{0.__class__.__init__.__globals__}'.format(cycler) }}", "unsafe"),
    "namespace": ("{% set ns = namespace(__class__=1) %}", "__class__"),
    "namespace later": ("{% set ns = namespace() %}{% set ns.__class__ = 1 %}", "__class__"),
    "dict": ("{{ dict.__class__.__mro__ }}", "unsafe"),
    "mutation": ("{{ messages.append(1) }}", "unsafe"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "syntax": ("{% if %}", "line 1 of the template"),
    "type": ("{{ 1 + 'a' }}", "TypeError"),
    "undefined": ("{{ nothing.at.all }}", "undefined"),
    "long message": ("{{ raise_exception('x' * 10**6) }}", "xxx"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_gives_a_request_error_and_the_next_chat_is_rendered(
    shared: ChatTemplate, name: str
) -> None:
    attack, expected = ATTACKS[name]
    with pytest.raises(RequestError, match=expected) as caught:
        render(shared, attack)
    assert len(str(caught.value)) < 1000
    assert render(shared, ECHO) == "hello"


def test_an_endless_template_is_stopped_at_the_deadline_and_the_next_chat_is_rendered() -> None:
    template = TWO_FACED.replace("ATTACK", ENDLESS)
    with ChatTemplate({"default": template}) as chat:
        assert chat.render(HELLO) == "fine"
        hurry(chat)
        with pytest.raises(RequestError, match="was stopped"):
            chat.render([{"role": "user", "content": "attack"}])
        assert chat.render(HELLO) == "fine"


def test_a_child_that_hangs_without_using_the_cpu_is_stopped_at_the_deadline() -> None:
    with ChatTemplate({"default": ECHO}) as chat:
        chat.render(HELLO)
        hurry(chat).send_signal(signal.SIGSTOP)
        with pytest.raises(RequestError, match="was stopped"):
            chat.render(HELLO)
        assert chat.render(HELLO) == "hello"


def hurry(chat: ChatTemplate) -> subprocess.Popen[bytes]:
    """Give the running child little time; how long the next one takes to start is as it may be."""
    assert chat._child is not None
    chat._child._deadline_s = 1.0
    return chat._child._process


def test_the_memory_limit_is_the_one_that_was_set() -> None:
    for memory_bytes, fits in ((128 << 20, False), (1024 << 20, True)):
        limits = ChatLimits(memory_bytes=memory_bytes)
        template = "{{ ('a' * (messages|length * 200000000)) | length }}"
        with ChatTemplate({"default": template}, limits=limits) as chat:
            if fits:
                assert chat.render(HELLO) == "200000000"
            else:
                with pytest.raises(RequestError, match="memory"):
                    chat.render(HELLO)


def test_the_kernel_ends_a_template_that_spins_though_nobody_watches() -> None:
    process = start_child({"cpu_s": 0})
    send(process, {"template": ENDLESS, "messages": HELLO, "variables": {}})
    assert process.wait(timeout=60) != 0
    close(process)


def test_the_child_ends_with_its_parent() -> None:
    process = start_child({})
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    close(process)


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\0\0\0\3abc", b"\0\0\0\x09{}"])
def test_a_malformed_frame_ends_the_child(data: bytes) -> None:
    process = start_child({})
    assert process.stdin is not None
    process.stdin.write(data)
    process.stdin.close()
    process.wait(timeout=60)
    assert process.stdout is not None
    assert process.stdout.read() == b""
    close(process)


def start_child(limits: dict[str, int]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, chat_child.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    send(process, {"memory_bytes": 512 << 20, "cpu_s": 5, "output_bytes": 1 << 20} | limits)
    return process


def send(process: subprocess.Popen[bytes], value: object) -> None:
    assert process.stdin is not None
    chat_child.write_frame(process.stdin, json.dumps(value).encode())


def close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


# The life of the child


def test_the_child_is_kept_for_the_next_chat_and_replaced_when_it_dies(
    shared: ChatTemplate,
) -> None:
    render(shared, ECHO)
    first = shared._child
    assert first is not None
    render(shared, ECHO)
    assert shared._child is first
    first._process.kill()
    first._process.wait()
    assert render(shared, ECHO) == "hello"
    assert shared._child is not first


def test_the_child_sees_no_secrets_of_the_daemon(
    shared: ChatTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shared.close()
    render(shared, ECHO)
    assert shared._child is not None
    environment = Path(f"/proc/{shared._child._process.pid}/environ").read_bytes()
    assert b"PYTHONPATH" in environment
    assert b"hf_secret" not in environment


def test_many_threads_get_each_their_own_chat(shared: ChatTemplate) -> None:
    shared._templates = {"default": ECHO}

    def one(number: int) -> str:
        return shared.render([{"role": "user", "content": f"chat {number}"}])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(40))) == [f"chat {number}" for number in range(40)]


def test_a_chat_that_waits_too_long_for_its_turn_is_told_to_come_back() -> None:
    limits = ChatLimits(wait_s=0.05)
    with ChatTemplate({"default": ECHO}, limits=limits) as chat:
        taken, over = threading.Event(), threading.Event()

        def occupy() -> None:
            with chat._turn:
                taken.set()
                over.wait(60)

        thread = threading.Thread(target=occupy)
        thread.start()
        taken.wait(60)
        try:
            with pytest.raises(QueueFull, match="busy"):
                chat.render(HELLO)
        finally:
            over.set()
            thread.join()


def test_a_machine_without_room_for_a_process_is_a_capacity_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chat_process.sys, "executable", "/nowhere/python")
    with pytest.raises(CapacityError, match="cannot be started"):
        ChatTemplate({"default": ECHO}).render(HELLO)
