"""What each verb prints, for people and for programs, and with which code it ends."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from scripted_node import DIGEST, ScriptedNode, finished, serving, token, whole

import swarmd
from swarmd.cli import console
from swarmd.cli.main import run
from swarmd.core.errors import (
    CoverageError,
    KVExhausted,
    PeerUnreachable,
    PromptTooLong,
    SwarmdError,
    UnknownModel,
)
from swarmd.v1 import inference_pb2 as pb
from swarmd.wire.status import abort

DEAD = "127.0.0.1:1"


class Shell:
    """Runs command lines against one scripted node."""

    def __init__(self, node: ScriptedNode, capsys: pytest.CaptureFixture[str]) -> None:
        self.node = node
        self.capsys = capsys

    async def __call__(self, *line: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(run, line)
        out, err = self.capsys.readouterr()
        return code, out, err

    async def json(self, *line: str) -> Any:
        code, out, err = await self(*line, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)


@pytest.fixture
async def shell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shell]:
    node = ScriptedNode()
    async with serving(node):
        monkeypatch.setenv("SWARMD_NODE", node.address)
        yield Shell(node, capsys)


def feed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


# -- generate --------------------------------------------------------------------------------------


async def test_generate_prints_the_text_and_nothing_else(shell: Shell) -> None:
    assert await shell("generate", "Once", "--max-tokens", "3") == (0, whole(3)[1] + "\n", "")
    assert shell.node.requests[0].text == "Once"


class Screen(io.StringIO):
    """Tells an event loop when something has been written."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.written = asyncio.Event()
        self._loop = loop

    def write(self, text: str) -> int:
        self._loop.call_soon_threadsafe(self.written.set)
        return super().write(text)


async def test_generate_streams(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(asyncio.get_running_loop())
    monkeypatch.setattr(sys, "stdout", screen)

    async def watched(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)
        await asyncio.wait_for(screen.written.wait(), 20)  # the second token waits for the first
        yield token(1)
        yield finished(2)

    shell.node.script = watched
    assert await asyncio.to_thread(run, ["generate", "p", "--max-tokens", "2"]) == 0
    assert screen.getvalue() == "w0 w1 \n"


async def test_generate_json_has_the_promised_keys(shell: Shell) -> None:
    got = await shell.json("generate", "p", "--max-tokens", "4")
    ids, text = whole(4)
    promised = {
        "text": text,
        "token_ids": list(ids),
        "finish_reason": "length",
        "num_prompt_tokens": 3,
        "repairs": 0,
        "route": [{"peer": "a" * 40, "address": shell.node.address, "blocks": "0:8", "pid": 11}],
    }
    assert {key: got[key] for key in promised} == promised
    assert got["ttft_s"] > 0
    assert got["tokens_per_s"] > 0
    assert got["max_stall_s"] >= 0


async def test_standbys_are_a_number_and_else_what_the_node_does(shell: Shell) -> None:
    for flags in ((), ("--standby", "0"), ("--standby", "1")):
        assert (await shell("generate", "p", "--max-tokens", "1", *flags))[0] == 0
    said = [(r.HasField("standby"), r.standby) for r in shell.node.requests]
    assert said == [(False, 0), (True, 0), (True, 1)]
    assert (await shell("generate", "p", "--standby", "-1"))[0] == 2
    assert (await shell("generate", "p", "--no-standby"))[0] == 2


async def test_a_session_is_kept_and_gone_on_from_by_name(shell: Shell) -> None:
    async def keeping(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)
        kept = pb.Kept(session=b"s" * 16, secret=b"k" * 16, tokens=4, address=node.address)
        yield finished(1, kept=kept)

    shell.node.script = keeping
    code, _, said = await shell("generate", "p", "--max-tokens", "1", "--keep-alive", "30")
    name = f"{shell.node.address}/{b's'.hex() * 16}{b'k'.hex() * 16}/4"
    assert (code, said) == (0, f"kept for 30 s: {name}\n")
    assert shell.node.requests[0].keep_alive_s == 30
    got = await shell.json("generate", "", "--max-tokens", "1", "--continue-from", name)
    assert got["kept"] == name
    asked = shell.node.requests[1].continue_from
    assert (asked.session, asked.secret, asked.tokens) == (b"s" * 16, b"k" * 16, 4)
    code, _, said = await shell("generate", "p", "--continue-from", "nonsense")
    assert code == 2
    assert "does not name a kept session" in said


async def test_generate_ids_takes_and_prints_ids(shell: Shell) -> None:
    done = await shell("generate", "--ids", "5, 6", "--max-tokens", "3")
    assert done == (0, "100,101,102\n", "")
    asked = shell.node.requests[0]
    assert list(asked.token_ids.ids) == [5, 6]
    assert asked.ids_only
    assert asked.ignore_eos


async def test_generate_reads_stdin(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, "line one\nline two\n")
    assert (await shell("generate", "-", "--max-tokens", "1"))[0] == 0
    assert shell.node.requests[0].text == "line one\nline two\n"


async def test_generate_flags_reach_the_node(shell: Shell) -> None:
    flags = (
        "--model m --max-tokens 2 --temperature 0.5 --top-k 3 --top-p 0.25 --min-p 0.125 "
        "--repetition-penalty 1.5 --presence-penalty 0.75 --frequency-penalty 0.5 --seed 9 "
        "--stop a --stop b --ignore-eos"
    )
    assert (await shell("generate", "p", *flags.split()))[0] == 0
    asked = shell.node.requests[0]
    expected = pb.GenerateRequest(
        model="m", text="p", max_tokens=2, stop=["a", "b"], ignore_eos=True, allow_redirect=True
    )
    expected.sampling.MergeFrom(
        type(asked.sampling)(
            temperature=0.5, top_k=3, top_p=0.25, min_p=0.125, repetition_penalty=1.5,
            presence_penalty=0.75, frequency_penalty=0.5, seed=9,
        )
    )  # fmt: skip
    assert asked == expected


async def test_generate_stats_go_to_stderr(shell: Shell) -> None:
    code, out, err = await shell("generate", "p", "--max-tokens", "2", "--stats")
    assert (code, out) == (0, whole(2)[1] + "\n")
    assert err.startswith("2 tokens, ")
    assert f"route 0:8 at {shell.node.address} (pid 11)" in err


async def test_several_nodes_may_be_given(shell: Shell) -> None:
    both = f"{DEAD},{shell.node.address}"
    assert (await shell("generate", "p", "--node", both, "--max-tokens", "1"))[0] == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CoverageError("blocks 4:8 have no live peer", [(4, 8)]), 1),
        (KVExhausted("KV budget: 3 of 3 MiB in use"), 1),
        (SwarmdError("odd"), 1),
        (PromptTooLong("prompt of 9,000 tokens, room for 4,096"), 2),
        (UnknownModel("nobody serves 'x'"), 2),
    ],
)
async def test_an_error_is_one_line_and_a_code(shell: Shell, error: SwarmdError, code: int) -> None:
    shell.node.fails_with = error
    assert await shell("generate", "p") == (code, "", f"swarmd: {error}\n")
    got, out, err = await shell("generate", "p", "--json")
    assert got == code
    assert json.loads(out) == {"error": {"type": type(error).__name__, "message": str(error)}}
    assert err == f"swarmd: {error}\n"


@pytest.mark.parametrize(
    "line",
    [
        "generate p --node",
        f"generate p --node {DEAD}:x",
        "generate p --max-tokens none",
        "generate p --max-tokens 0",
        "generate p --temperature -1",
        "generate p --ids",
        "generate p --bogus",
        "generate",
        "drain",
        "bogus",
        "status --interval 0",
        "serve --threads two model",
        "serve --config /none/such.toml",
        "serve --listen 0.0.0.0:7420 model",
        "serve",
    ],
)
def test_a_mistake_of_the_caller_is_code_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"swarmd: .+\n", err)
    verb, *rest = line.split()
    assert run([verb, "--json", *rest]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["message"]


async def test_a_stream_that_fails_in_the_middle_keeps_what_was_printed(shell: Shell) -> None:
    async def failing(node: ScriptedNode, request: Any, context: Any) -> AsyncIterator[Any]:
        yield node.started(request)
        yield token(0)
        await abort(context, CoverageError("blocks 4:8 have no live peer", [(4, 8)]))

    shell.node.script = failing
    code, out, err = await shell("generate", "p", "--max-tokens", "3")
    assert (code, out.rstrip()) == (1, "w0")
    assert err == "swarmd: blocks 4:8 have no live peer\n"


# -- chat ------------------------------------------------------------------------------------------


def said(request: pb.GenerateRequest) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in request.chat.messages]


async def test_chat_keeps_the_history_until_reset(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, "hi\n\nmore\n/reset\nafresh\n/quit\nnever\n")
    code, out, err = await shell("chat", "--max-tokens", "2", "--system", "be kind")
    assert (code, out, err) == (0, "w0 w1 \n" * 3, "")
    first, second, third = map(said, shell.node.requests)
    assert first == [("system", "be kind"), ("user", "hi")]
    assert second == [*first, ("assistant", "w0 w1 "), ("user", "more")]
    assert third == [("system", "be kind"), ("user", "afresh")]


async def test_chat_json_is_an_object_per_answer(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, "a\nb\n")
    code, out, _ = await shell("chat", "--max-tokens", "1", "--json")
    assert code == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["w0 ", "w0 "]


async def test_chat_from_a_file_ends_at_the_first_error(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, "a\nb\n")
    shell.node.fails_with = KVExhausted("full")
    assert await shell("chat") == (1, "", "swarmd: full\n")
    assert len(shell.node.requests) == 1


async def test_chat_explains_an_unknown_command(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed(monkeypatch, "/help\n")
    code, out, err = await shell("chat")
    assert (code, out) == (0, "")
    assert "/reset" in err
    assert "/quit" in err


# -- status, drain, version ------------------------------------------------------------------------


def swarm_of_two(node: ScriptedNode) -> None:
    node.peers = [
        pb.PeerStatus(
            peer_id="b" * 40, address="10.0.0.2:7420", start=4, end=8, state="draining",
            device="cuda:0", dtype="bfloat16", sessions=3, kv_total_bytes=4 << 30,
            kv_free_bytes=1 << 30, tokens_per_s=12.34, model="toy",
        ),
        pb.PeerStatus(
            peer_id="a" * 40, address="[red]x:1[/red]", end=4, state="serving", device="cpu",
            dtype="float32", model="toy",
        ),
    ]  # fmt: skip


async def test_status_shows_peers_and_what_is_missing(shell: Shell) -> None:
    swarm_of_two(shell.node)
    code, out, err = await shell("status")
    assert (code, err) == (0, "")
    rows = [" ".join(line.split()) for line in out.splitlines() if line.strip()]
    assert rows[0] == "peer address blocks state device dtype sessions KV used tokens/s"
    own = "a" * 12 + "* [red]x:1[/red] 0:4 serving cpu float32 0 - 0.0"
    other = "b" * 12 + " 10.0.0.2:7420 4:8 draining cuda:0 bfloat16 3 75% of 4.0 GiB 12.3"
    assert [rows[2], rows[3]] == [own, other]
    assert rows[-1] == "toy: 4 of 8 blocks, missing 4:8"


@pytest.mark.parametrize("name", ["toy", "other"])
async def test_status_says_which_peer_serves_which_of_several_models(
    shell: Shell, name: str
) -> None:
    swarm_of_two(shell.node)
    for peer, digest in zip(shell.node.peers, ("e2" * 32, DIGEST), strict=True):
        peer.model_digest = digest
    shell.node.peers[0].model = name
    shell.node.other_models = [
        pb.ModelStatus(name=name, digest="e2" * 32, num_blocks=4, covered_blocks=4, replicas=1)
    ]
    _, out, _ = await shell("status")
    rows = [" ".join(line.split()) for line in out.splitlines() if line.strip()]
    first, second = ("toy@d1d1d1d1d1d1", "toy@e2e2e2e2e2e2") if name == "toy" else ("toy", "other")
    assert rows[0].startswith("peer address model blocks state")
    shown = {row.split()[0][:1]: row.split()[2] for row in rows[2:4]}
    assert shown == {"a": first, "b": second}
    assert rows[-2:] == [
        f"{first}: 4 of 8 blocks, missing 4:8",
        f"{second}: 4 of 4 blocks, replicas 1",
    ]


async def test_status_json(shell: Shell) -> None:
    swarm_of_two(shell.node)
    got = await shell.json("status")
    assert [peer["blocks"] for peer in got["peers"]] == ["4:8", "0:4"]
    assert got["models"][0]["missing"] == ["4:8"]
    assert got["counters"] == {"tokens": 3.0}


async def test_status_watch_goes_on_until_the_node_is_gone(shell: Shell) -> None:
    shell.node.status_answers = 3
    code, out, err = await shell("status", "--watch", "--interval", "0.05", "--json")
    assert code == 1
    assert len(out.splitlines()) == 3 + 1
    assert "error" in json.loads(out.splitlines()[-1])
    assert err.startswith("swarmd: ")


def test_status_of_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--node", DEAD]) == 1
    out, err = capsys.readouterr()
    assert (out, DEAD in err) == ("", True)


async def test_drain(shell: Shell) -> None:
    address = shell.node.address
    code, out, err = await shell("drain", address)
    assert (code, err) == (0, "")
    assert out == f"{address} drains and will exit: 2 sessions to finish\n"
    assert await shell.json("drain", address, "--force") == {"address": address, "sessions": 2}
    assert shell.node.drained == [False, True]
    assert (await shell("drain", f"{address},{DEAD}"))[0] == 2


async def test_drain_takes_a_peer_id_as_status_shows_it(shell: Shell) -> None:
    target = ScriptedNode()
    async with serving(target):
        for begin, address in (("c0ffee1", target.address), ("c0ffee2", DEAD)):
            peer_id = begin.ljust(40, "0")
            shell.node.peers.append(pb.PeerStatus(peer_id=peer_id, address=address))
        for said in ("c0ffee1", "C0FFEE10", "c0ffee100000*", "c0ffee1".ljust(40, "0")):
            code, out, err = await shell("drain", said)
            assert (code, err) == (0, ""), said
            assert out == f"{target.address} drains and will exit: 2 sessions to finish\n"
        got = await shell.json("drain", "c0ffee1", "--force", "--node", shell.node.address)
        assert got == {"address": target.address, "sessions": 2}
        assert target.drained == [False] * 4 + [True]
        assert not shell.node.drained, "it was asked for the address only"

        code, _, err = await shell("drain", "c0ffee")
        assert code == 2
        assert "2 peers have ids that begin with c0ffee: c0ffee1" in err
        assert f"at {target.address}, c0ffee2" in err
        code, _, err = await shell("drain", "abcdef")
        assert code == 2
        assert f"{shell.node.address} knows no peer whose id begins with abcdef;" in err
        assert len(target.drained) == 5


async def test_version(shell: Shell) -> None:
    code, out, _ = await shell("version")
    assert (code, out.split()[:2]) == (0, ["swarmd", swarmd.__version__])
    assert (await shell.json("version"))["swarmd"] == swarmd.__version__
    assert (await shell("--version"))[1] == f"swarmd {swarmd.__version__}\n"


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ([], ["--help"], ["-h"]):
        assert run(line) == 0
        out = capsys.readouterr().out
        for verb in ("serve", "generate", "chat", "status", "drain", "version"):
            assert re.search(rf"^  {verb}  +\w", out, re.MULTILINE), verb


# -- what a terminal gets --------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_no_control_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    piped, terminal = io.StringIO(), Terminal()
    for out in (piped, terminal):
        monkeypatch.setattr(sys, "stdout", out)
        console.write("a\x1b[2Jb\n\tä\x07")
    assert terminal.getvalue() == "a[2Jb\n\tä"
    assert piped.getvalue() == "a\x1b[2Jb\n\tä\x07"


def test_an_error_of_many_lines_is_printed_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    error = PeerUnreachable("a\nb")
    error.add_note("after 3 tokens")
    assert console.fail(error, as_json=False) == 1
    assert capsys.readouterr().err == "swarmd: a b; after 3 tokens\n"
