"""Streaming twins of the decoders of a tokenizer.json: token strings in, text out, piece by piece.

Each stage repeats what the `tokenizers` library does to a whole list of tokens, but gives out what
can no longer change. Ids, special tokens and prompts are `swarmd.text.detokenizer`'s.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from swarmd.core.errors import ModelError

# As Rust's u8::from_str_radix reads them, which allows a plus sign.
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>", re.ASCII)


class Stage(Protocol):
    """One step of a decoder. A piece is a token's string until some stage fuses them into text."""

    def push(self, piece: str) -> Iterable[str]:
        """Take a piece; return the pieces that are now certain."""
        ...

    def flush(self) -> Iterable[str]:
        """Return what was held back, now that nothing follows."""
        ...


class Pipeline:
    """The stages of one decoder in a row, with the state of one stream of tokens."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._stages = tuple(stages)

    def push(self, token: str) -> str:
        """Take one token's string; return the text that is now certain."""
        return self._run([token], 0)

    def flush(self) -> str:
        """Return the text that was held back for what might have followed."""
        return "".join(
            self._run(stage.flush(), index + 1) for index, stage in enumerate(self._stages)
        )

    def _run(self, pieces: Iterable[str], first: int) -> str:
        for stage in self._stages[first:]:
            pieces = [out for piece in pieces for out in stage.push(piece)]
        return "".join(pieces)


class _Local:
    """A stage that turns each piece into one piece, without looking at its neighbours."""

    def __init__(self, change: Callable[[str], str]) -> None:
        self._change = change

    def push(self, piece: str) -> Iterable[str]:
        return (self._change(piece),)

    def flush(self) -> Iterable[str]:
        return ()


class _Numbered:
    """A stage that treats the first piece differently from all later ones."""

    def __init__(self, change: Callable[[str, bool], str]) -> None:
        self._change = change
        self._first = True

    def push(self, piece: str) -> Iterable[str]:
        first, self._first = self._first, False
        return (self._change(piece, first),)

    def flush(self) -> Iterable[str]:
        return ()


class _ByteLevel:
    """GPT-2's alphabet: each character stands for one byte of UTF-8."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, piece: str) -> Iterable[str]:
        try:
            data = bytes([_CHAR_TO_BYTE[char] for char in piece])
        except KeyError:  # an added token that is not written in the alphabet stands for itself
            data = piece.encode()
        return (self._utf8.decode(data),)

    def flush(self) -> Iterable[str]:
        return (self._utf8.decode(b"", final=True),)


class _ByteFallback:
    """Runs of tokens such as `<0xE4>` are UTF-8, if the whole run is, or else one U+FFFD each.

    Because of that rule a run is certain only when it has ended.
    """

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, piece: str) -> Iterable[str]:
        match = _BYTE_TOKEN.fullmatch(piece)
        if match is None:
            return (*self.flush(), piece)
        self._run.append(int(match[1], 16))
        return ()

    def flush(self) -> Iterable[str]:
        run, self._run = self._run, bytearray()
        try:
            return (run.decode(),) if run else ()
        except UnicodeDecodeError:
            return ("\ufffd",) * len(run)


class _StripStart:
    """Strips up to `limit` characters `content` from the beginning of the fused text."""

    def __init__(self, content: str, limit: int) -> None:
        self._content, self._limit = content, limit

    def push(self, piece: str) -> Iterable[str]:
        kept = _strip_start(piece, self._content, self._limit)
        self._limit = 0 if kept else self._limit - len(piece)
        return (kept,)

    def flush(self) -> Iterable[str]:
        return ()


class _EndOfWord:
    """Tokens that end a word carry a suffix: a space, unless it is the very last token.

    So each token waits for the next one.
    """

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: str | None = None

    def push(self, piece: str) -> Iterable[str]:
        held, self._held = self._held, piece
        return () if held is None else (held.replace(self._suffix, " "),)

    def flush(self) -> Iterable[str]:
        held, self._held = self._held, None
        return () if held is None else (held.replace(self._suffix, ""),)


def compile_decoder(config: Mapping[str, Any] | None) -> Callable[[], Pipeline]:
    """Read a decoder as the `tokenizers` library serialises it; return a maker of fresh pipelines.

    Raises ModelError for a decoder that has no streaming twin here, or a malformed one.
    """
    steps = list(_flatten(config))
    text_at = _check_order([str(step.get("type")) for step in steps])
    try:
        makers = [_maker(step, fused=index > text_at) for index, step in enumerate(steps)]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"tokenizer.json: malformed decoder ({error!r})") from error
    if config is None:  # the library joins the tokens with spaces then
        makers = [lambda: _Numbered(lambda piece, first: piece if first else f" {piece}")]
    return lambda: Pipeline(make() for make in makers)


def _flatten(config: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    if config is None:
        return
    if not isinstance(config, Mapping):
        raise ModelError("tokenizer.json: the decoder is not an object")
    if config.get("type") != "Sequence":
        yield config
        return
    for step in config.get("decoders") or ():
        yield from _flatten(step)


def _check_order(kinds: list[str]) -> int:
    """Return the index of the stage that fuses tokens into text; later ones see one long piece."""
    fusing = [index for index, kind in enumerate(kinds) if kind in ("Fuse", "ByteLevel")]
    text_at = fusing[0] if fusing else len(kinds)
    for kind in kinds[text_at + 1 :]:
        if kind not in ("Fuse", "Strip", "Replace"):
            raise ModelError(f"tokenizer.json: decoder {kind} after {kinds[text_at]} is unknown")
    return text_at


def _maker(step: Mapping[str, Any], *, fused: bool) -> Callable[[], Stage]:
    kind = step.get("type")
    if kind == "ByteLevel":
        return _ByteLevel
    if kind == "ByteFallback":
        return _ByteFallback
    if kind == "Fuse":
        return lambda: _Local(lambda piece: piece)
    if kind == "Replace":
        return _replace(step, fused=fused)
    if kind == "Strip":
        return _strip(step, fused=fused)
    if kind == "Metaspace":
        return _metaspace(step)
    if kind == "WordPiece":
        return _wordpiece(step)
    if kind == "BPEDecoder":
        suffix = str(step["suffix"])
        return lambda: _EndOfWord(suffix)
    raise ModelError(
        f"tokenizer.json: decoder {kind!r} is not supported; swarmd streams ByteLevel, "
        "ByteFallback, Fuse, Metaspace, Replace, Strip, WordPiece, BPEDecoder and sequences of them"
    )


def _replace(step: Mapping[str, Any], *, fused: bool) -> Callable[[], Stage]:
    pattern, content = step["pattern"].get("String"), str(step["content"])
    if not isinstance(pattern, str) or not pattern or (fused and len(pattern) > 1):
        raise ModelError(f"tokenizer.json: decoder Replace of {step['pattern']} is not supported")
    return lambda: _Local(lambda piece: piece.replace(pattern, content))


def _strip(step: Mapping[str, Any], *, fused: bool) -> Callable[[], Stage]:
    content, start, stop = str(step["content"]), int(step["start"]), int(step["stop"])
    if stop:  # the library itself panics on text shorter than that
        raise ModelError("tokenizer.json: decoder Strip at the end of the text is not supported")
    if fused:
        return lambda: _StripStart(content, start)
    return lambda: _Local(lambda piece: _strip_start(piece, content, start))


def _metaspace(step: Mapping[str, Any]) -> Callable[[], Stage]:
    mark = str(step["replacement"])
    at_start = " " if step["prepend_scheme"] == "never" else ""
    return lambda: _Numbered(lambda piece, first: piece.replace(mark, at_start if first else " "))


def _wordpiece(step: Mapping[str, Any]) -> Callable[[], Stage]:
    prefix, cleanup = str(step["prefix"]), bool(step["cleanup"])

    def change(piece: str, first: bool) -> str:
        if not first:
            inside = piece.startswith(prefix)
            piece = piece.removeprefix(prefix) if inside else f" {piece}"
        return _tidy(piece) if cleanup else piece

    return lambda: _Numbered(change)


def _tidy(piece: str) -> str:
    """The clean-up of English text that the library's WordPiece decoder does, in its order."""
    for mark in (" .", " ?", " !", " ,"):
        piece = piece.replace(mark, mark[1:])
    piece = piece.replace(" ' ", "'").replace(" n't", "n't").replace(" 'm", "'m")
    piece = piece.replace(" do not", " don't")
    for mark in (" 's", " 've", " 're"):
        piece = piece.replace(mark, mark[1:])
    return piece


def _strip_start(text: str, content: str, limit: int) -> str:
    return text[min(len(text) - len(text.lstrip(content)), limit) :]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's mapping: printable Latin-1 stands for itself, other bytes for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


_CHAR_TO_BYTE = _byte_alphabet()
