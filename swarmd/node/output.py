"""From a session's ids to the text that its client gets: detokenised, cut at stop strings.

A resumed session is fed the ids that the client has already, so that the state is the same as if it
had never been interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swarmd.text.detokenizer import IncrementalDetokenizer
from swarmd.text.stop import StopStrings
from swarmd.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Piece:
    """What a token adds: text that is now certain, and the stop string it completed."""

    text: str = ""
    stop: str | None = None


class OutputText:
    """The text of one session. Without a tokenizer every piece is empty."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        prompt_ids: Sequence[int],
        stops: Sequence[str],
        *,
        include_stop: bool = False,
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids) if tokenizer else None
        self._stops = StopStrings(stops, include_stop=include_stop)
        self._skip = 0

    def catch_up(self, output_ids: Sequence[int], text_chars: int) -> Piece:
        """Take the ids that the client has; return what it lacks of their text."""
        self._skip = text_chars
        text = ""
        for token_id in output_ids:
            piece = self.push(token_id)
            text += piece.text
            if piece.stop is not None:
                return Piece(text, piece.stop)
        return Piece(text)

    def push(self, token_id: int) -> Piece:
        """Take one id."""
        if self._detokenizer is None:
            return Piece()
        text, stop = self._stops.push(self._detokenizer.push(token_id))
        return Piece(self._fresh(text), stop)

    def finish(self) -> Piece:
        """Return what was held back; the stop string may still come true in it."""
        if self._detokenizer is None:
            return Piece()
        text, stop = self._stops.push(self._detokenizer.finish())
        return Piece(self._fresh(text + self._stops.finish()), stop)

    def _fresh(self, text: str) -> str:
        """Cut off what the client has already."""
        skipped = min(self._skip, len(text))
        self._skip -= skipped
        return text[skipped:]
