"""`swarmd generate`: one prompt in, the text that follows it out, token by token.

The work is `swarmd.client`'s.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from swarmd.cli import console
from swarmd.core.errors import RequestError

if TYPE_CHECKING:
    from swarmd.client import SyncGeneration
    from swarmd.client.request import GenerateArguments, Prompt
    from swarmd.core.results import Completion


def _number(flag: str, help: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(flag, help=help)
    return option


MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="Stop after so many tokens.")]
Temperature = Annotated[float, _number("--temperature", "0 always takes the likeliest token.")]
TopK = Annotated[int, _number("--top-k", "Draw from the K likeliest tokens; 0: from all.")]
TopP = Annotated[float, _number("--top-p", "Draw from the likeliest tokens up to this mass.")]
MinP = Annotated[float, _number("--min-p", "Drop tokens less likely than this times the best.")]
Repetition = Annotated[float, _number("--repetition-penalty", "1 is off.")]
Presence = Annotated[float, _number("--presence-penalty", "0 is off.")]
Frequency = Annotated[float, _number("--frequency-penalty", "0 is off.")]
Seed = Annotated[int | None, typer.Option("--seed", help="Same seed, same text.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", help="End at this text; repeatable.")]
Model = Annotated[
    str,
    typer.Option(
        "--model", help="Served name, or NAME@DIGEST; default: the model of the node asked."
    ),
]


KeepAlive = Annotated[
    float,
    _number("--keep-alive", "Seconds for which the swarm keeps the session for a next turn."),
]


@console.verb
def generate(
    prompt: Annotated[
        str, typer.Argument(metavar="PROMPT", help="Text to continue; - reads it from stdin.")
    ],
    node: console.NodeOption = console.DEFAULT_NODE,
    model: Model = "",
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Repetition = 1.0,
    presence_penalty: Presence = 0.0,
    frequency_penalty: Frequency = 0.0,
    seed: Seed = None,
    stop: Stop = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after an end-of-sequence token.")
    ] = False,
    priority: Annotated[
        int,
        typer.Option("--priority", help="Lower numbers go first where sessions wait for room."),
    ] = 0,
    standby: Annotated[
        int | None,
        typer.Option(
            "--standby",
            metavar="N",
            min=0,
            help="Copies of each hop's KV that others hold meanwhile; default: the node's own.",
        ),
    ] = None,
    keep_alive: KeepAlive = 0.0,
    continue_from: Annotated[
        str | None,
        typer.Option(
            "--continue-from",
            metavar="KEPT",
            help="Go on from a kept session, as --keep-alive has named it; PROMPT is what follows.",
        ),
    ] = None,
    ids: Annotated[
        bool,
        typer.Option(
            "--ids", help="Take and print token ids (1,2,3); the end of sequence is ignored."
        ),
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print speed and route to stderr.")
    ] = False,
    timeout: console.TimeoutOption = None,
    as_json: console.JsonOption = False,
) -> int | None:
    """Continue a prompt; the text streams as it is computed."""
    from swarmd.client import Client

    console.tell_waits()
    text = sys.stdin.read() if prompt == "-" else prompt
    asked: Prompt = _parse_ids(text, may_be_empty=continue_from is not None) if ids else text
    arguments: GenerateArguments = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "seed": seed,
        "stop": stop or [],
        "ignore_eos": ignore_eos or ids,
        "ids_only": ids,
        "priority": priority,
        "standby": standby,
        "keep_alive": keep_alive,
        "continue_from": continue_from,
        "timeout": timeout,
    }
    with Client(node) as client, client.generate(asked, **arguments) as stream:
        result = _print_stream(stream, ids=ids, quiet=as_json)
    if as_json:
        console.print_json(result.as_dict())
    elif result.kept:
        print(f"kept for {keep_alive:g} s: {result.kept}", file=sys.stderr)
    if stats:
        print(stats_line(result), file=sys.stderr)
    return None


def _print_stream(stream: SyncGeneration, *, ids: bool, quiet: bool) -> Completion:
    comma = ""
    for token in stream:
        if not quiet:
            console.write(f"{comma}{token.id}" if ids else token.text)
        comma = ","
    if not quiet:
        console.write("\n")
    return stream.result


def _parse_ids(text: str, *, may_be_empty: bool) -> list[int]:
    if may_be_empty and not text.strip():
        return []
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise RequestError(f"--ids takes token ids such as 1,2,3, not {text[:80]!r}") from None


def stats_line(result: Completion) -> str:
    """Return speed, stalls and route of a completion, for people."""
    hops = " > ".join(f"{hop.blocks} at {hop.address} (pid {hop.pid})" for hop in result.route)
    precision = (
        f" ({result.precision_changes} to a peer of another precision: ids may differ)"
        if result.precision_changes
        else ""
    )
    return (
        f"{len(result.token_ids)} tokens, {result.tokens_per_s:.1f} tokens/s, "
        f"first after {result.ttft_s:.2f} s, longest stall {result.max_stall_s:.2f} s, "
        f"{result.repairs} repairs{precision}, {result.resumes} resumes, "
        f"{result.finish_reason}; route {hops}"
    )
