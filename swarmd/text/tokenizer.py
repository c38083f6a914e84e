"""A model's tokenizer: text to ids and back, and which ids begin and end a text.

Text that grows token by token is `swarmd.text.detokenizer`'s; chats are `swarmd.text.chat`'s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from swarmd.core.errors import ModelError, RequestError, SwarmdError
from swarmd.core.sampling import MAX_STOP_IDS
from swarmd.text.decoders import Pipeline, compile_decoder
from swarmd.text.gpt2_files import build_gpt2
from swarmd.text.model_files import (
    named_special_tokens,
    read_json,
    read_text,
    read_tokenizer_config,
)

# The largest in use have 35 MB (262,144 tokens).
MAX_TOKENIZER_BYTES = 128 << 20
MAX_TEXT_CHARS = 16 << 20
# Texts come one by one: threads to share a batch among would be started for nothing.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class Tokenizer:
    """A tokenizer.json and what the files beside it say; gives the ids that transformers gives.

    Safe to use from several threads.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str] | None = None,
        eos_token_ids: Sequence[int] = (),
        bos_token_id: int | None = None,
    ) -> None:
        self._backend = backend
        self.special_tokens: Mapping[str, str] = dict(special_tokens or {})
        """The named ones: `{"bos_token": "<s>", ...}`."""
        self.eos_token_ids: tuple[int, ...] = tuple(eos_token_ids)
        """The ids that end a text; may be empty."""
        self.bos_token_id = bos_token_id
        self._special_ids = frozenset(
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )
        self._new_pipeline = _compile(backend)

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """Load from a directory in Hugging Face layout; no network.

        Raises ModelError when files are missing, damaged or of an unknown kind.
        """
        directory = Path(path)
        config = read_tokenizer_config(directory)
        special_tokens = named_special_tokens(config)
        backend = _load_backend(directory, config)
        _add_missing_tokens(backend, config, special_tokens)
        generation = read_json(directory / "generation_config.json")
        model = read_json(directory / "config.json")

        def ids(name: str) -> tuple[int, ...]:
            return (
                _ids_in(generation, f"{name}_token_id")
                or _ids_in(model, f"{name}_token_id")
                or _id_of(backend, special_tokens.get(f"{name}_token"))
            )

        bos = _id_of(backend, special_tokens.get("bos_token")) or ids("bos")
        return cls(
            backend,
            special_tokens=special_tokens,
            eos_token_ids=ids("eos"),
            bos_token_id=bos[0] if bos else None,
        )

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included; the model's own matrix may have more rows."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of `text`; pass False for rendered chats, whose templates add their own.

        Raises RequestError for text that is too long or not valid Unicode.
        """
        if len(text) > MAX_TEXT_CHARS:
            raise RequestError(f"the text has {len(text)} characters, at most {MAX_TEXT_CHARS}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"the text is not valid Unicode: {error}") from error
        with _foreign_errors(RequestError, "the tokenizer refuses this text"):
            # Unlike `encode`, this lets other threads run, and does not look for offsets.
            (found,) = self._backend.encode_batch_fast(
                [text], add_special_tokens=add_special_tokens
            )
            return list(found.ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; ids outside the vocabulary are skipped."""
        known = [token_id for token_id in ids if 0 <= token_id < 1 << 32]
        with _foreign_errors(RequestError, "the tokenizer refuses these ids"):
            (text,) = self._backend.decode_batch([known], skip_special_tokens=skip_special_tokens)
            return str(text)

    def piece(self, token_id: int, *, skip_special: bool = True) -> str | None:
        """Return the token's string as its decoder wants it; None if unknown or to be skipped."""
        if not 0 <= token_id < 1 << 32 or (skip_special and token_id in self._special_ids):
            return None
        piece = self._backend.id_to_token(token_id)
        return None if piece is None else str(piece)

    def new_pipeline(self) -> Pipeline:
        """Return a fresh streaming decoder for the strings that `piece` gives."""
        return self._new_pipeline()


def _load_backend(directory: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    text = read_text(directory / "tokenizer.json", MAX_TOKENIZER_BYTES)
    if text is None:
        return _load_without_tokenizer_json(directory, config)
    with _foreign_errors(ModelError, f"{directory / 'tokenizer.json'} is damaged"):
        backend = tokenizers.Tokenizer.from_str(text)
        # Limits for training batches, which some files carry, are none of generation's.
        backend.no_truncation()
        backend.no_padding()
    return backend


def _load_without_tokenizer_json(
    directory: Path, config: Mapping[str, Any]
) -> tokenizers.Tokenizer:
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a directory: give the directory of a model")
    with _foreign_errors(ModelError, f"{directory}: vocab.json or merges.txt is damaged"):
        backend = build_gpt2(directory, config)
    if backend is not None:
        return backend
    names = ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt")
    present = [name for name in names if (directory / name).exists()]
    raise ModelError(
        f"{directory} has no tokenizer.json"
        + (f" (only {', '.join(present)})" if present else "")
        + '. Convert it once, on a machine with transformers: python -c "from transformers import '
        f"AutoTokenizer as A; A.from_pretrained('{directory}').save_pretrained('{directory}')\""
    )


def _add_missing_tokens(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]
) -> None:
    """Add the tokens that only tokenizer_config.json knows, as transformers does."""
    known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    declared = config.get("added_tokens_decoder") or {}
    with _foreign_errors(ModelError, "tokenizer_config.json: malformed added_tokens_decoder"):
        in_order = sorted(declared.items(), key=lambda item: int(item[0]))
        tokens = [_added_token(token) for _, token in in_order]
        backend.add_tokens([token for token in tokens if repr(token) not in known])
        contents = {token.content for token in backend.get_added_tokens_decoder().values()}
        backend.add_tokens(
            [
                tokenizers.AddedToken(content, special=True)
                for content in dict.fromkeys(special_tokens.values())
                if content not in contents
            ]
        )


def _added_token(entry: Mapping[str, Any]) -> tokenizers.AddedToken:
    flags = {key: entry[key] for key in _TOKEN_FLAGS if key in entry}
    return tokenizers.AddedToken(entry["content"], **flags)


def _compile(backend: tokenizers.Tokenizer) -> Callable[[], Pipeline]:
    if backend.decoder is None:
        return compile_decoder(None)
    return compile_decoder(json.loads(backend.decoder.__getstate__()))


def _ids_in(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return the token ids under `key`, an int or a list of them, here or in `text_config`."""
    value = config.get(key)
    text_config = config.get("text_config")
    if value is None and isinstance(text_config, dict):
        value = text_config.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if len(ids) > MAX_STOP_IDS or not all(type(i) is int and -1 <= i < 1 << 31 for i in ids):
        raise ModelError(f"{key} must be a token id or at most {MAX_STOP_IDS} of them")
    return tuple(token_id for token_id in ids if token_id >= 0)  # -1 is some files' "none"


def _id_of(backend: tokenizers.Tokenizer, token: str | None) -> tuple[int, ...]:
    found = None if token is None else backend.token_to_id(token)
    return () if found is None else (int(found),)


@contextmanager
def _foreign_errors(kind: type[SwarmdError], what: str) -> Iterator[None]:
    """Turn the library's bare exceptions, and its Rust panics, into one of ours."""
    try:
        yield
    except SwarmdError:
        raise
    except BaseException as error:
        # A panic is a BaseException whose class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {str(error)[:500]}") from error
