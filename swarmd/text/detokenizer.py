"""Incremental detokenising: token ids in, one at a time, text out that never changes again.

What the decoders do to token strings is `swarmd.text.decoders`'; cutting at stop strings is
`swarmd.text.stop`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swarmd.text.decoders import Pipeline

if TYPE_CHECKING:
    from swarmd.text.tokenizer import Tokenizer

# The state of a decoder depends on a few tokens back only (the bytes of an unfinished character,
# "is this the first token"), except for byte tokens, of which a whole run counts.
_TAIL_PIECES = 32


class IncrementalDetokenizer:
    """Turns one session's output ids into text.

    The pushes and `finish` together give `tokenizer.decode(prompt_ids + output_ids)` less what it
    has in common with `tokenizer.decode(prompt_ids)`: so the first token of the output keeps its
    leading space, and a character that the prompt left unfinished comes out whole. Unknown ids are
    skipped, as `decode` does. Constant time per token; a run of `<0x..>` byte tokens is given out
    when it ends, because one bad byte turns all of it into U+FFFD.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        *,
        skip_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special_tokens
        tail = self._tail(prompt_ids)
        self._pipeline = _fed(tokenizer.new_pipeline(), tail)
        # What the prompt's own text still owes; the pipeline will give it out again.
        self._owed = _fed(tokenizer.new_pipeline(), tail).flush()

    def push(self, token_id: int) -> str:
        """Take the next id; return the text that is now certain, often one token's, maybe none."""
        piece = self._tokenizer.piece(token_id, skip_special=self._skip_special)
        return "" if piece is None else self._new(self._pipeline.push(piece))

    def finish(self) -> str:
        """Return the rest of the text. The detokenizer is used up afterwards."""
        return self._new(self._pipeline.flush())

    def _new(self, text: str) -> str:
        if not self._owed:
            return text
        common = _common_prefix(self._owed, text)
        # Once the text differs from what the prompt gave alone, nothing more of it will come.
        self._owed = self._owed[common:] if common == len(text) else ""
        return text[common:]

    def _tail(self, prompt_ids: Sequence[int]) -> list[str]:
        """Return the last pieces of the prompt, enough of them to bring a pipeline up to date."""
        tail: list[str] = []
        for token_id in reversed(prompt_ids):
            piece = self._tokenizer.piece(token_id, skip_special=self._skip_special)
            if piece is None:
                continue
            tail.append(piece)
            if len(tail) >= _TAIL_PIECES and not piece.startswith("<0x"):
                break
        return tail[::-1]


def _fed(pipeline: Pipeline, pieces: Sequence[str]) -> Pipeline:
    for piece in pieces:
        pipeline.push(piece)
    return pipeline


def _common_prefix(left: str, right: str) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))
