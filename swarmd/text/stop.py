"""Stop strings: cuts a stream of text at the first one, wherever the token borders fall.

Turning ids into text is `swarmd.text.detokenizer`'s; stop *ids* are the last stage's business.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarmd.core.errors import RequestError

MAX_STOPS = 16
MAX_STOP_CHARS = 256


class StopStrings:
    """Watches one stream of text for stop strings.

    The stream ends with the shortest text that contains a stop string; of several that end there
    the longest counts. So the outcome does not depend on how the text was cut into pushes, and
    generation never has to go on past a complete stop string to decide. Raises RequestError for an
    empty stop string, or when there are too many or one is too long.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        _check(stops)
        # Longest first: the first one found complete is then the one that counts.
        self._patterns = [_Pattern(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        self._include_stop = include_stop
        self._held = ""
        self._stopped: str | None = None

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the stream, or None."""
        return self._stopped

    def push(self, text: str) -> tuple[str, str | None]:
        """Take more text; return the text that may go out, and the stop string once one is found.

        Text that could be the beginning of a stop string is held back, unless stop strings are
        included in the output. After a stop, whatever is pushed is swallowed.
        """
        if self._stopped is not None or not self._patterns:
            return ("" if self._patterns else text), self._stopped
        text, offset = self._held + text, len(self._held)
        for position in range(offset, len(text)):
            found = self._step(text[position])
            if found is not None:
                return self._stop(found, text[: position + 1])
        keep = len(text) - self._to_hold()
        self._held = text[keep:]
        return text[:keep], None

    def finish(self) -> str:
        """Return what is still held back: the stream ended without completing a stop string."""
        held, self._held = self._held, ""
        return held

    def _step(self, char: str) -> str | None:
        matched = None
        for pattern in self._patterns:
            if pattern.step(char) and matched is None:
                matched = pattern.text
        return matched

    def _to_hold(self) -> int:
        if self._include_stop:
            return 0
        return max(pattern.matched for pattern in self._patterns)

    def _stop(self, found: str, text: str) -> tuple[str, str]:
        self._stopped, self._held = found, ""
        return (text if self._include_stop else text[: -len(found)]), found


class _Pattern:
    """One stop string and how much of it the text so far ends with (Knuth, Morris, Pratt)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._borders = _borders(text)

    def step(self, char: str) -> bool:
        """Take one character; return whether the string is complete. Then it takes no more."""
        while self.matched and self.text[self.matched] != char:
            self.matched = self._borders[self.matched - 1]
        if self.text[self.matched] == char:
            self.matched += 1
        return self.matched == len(self.text)


def _borders(text: str) -> list[int]:
    """For each prefix of `text`: the length of its longest proper prefix that is also its end."""
    borders = [0] * len(text)
    length = 0
    for i in range(1, len(text)):
        while length and text[i] != text[length]:
            length = borders[length - 1]
        if text[i] == text[length]:
            length += 1
        borders[i] = length
    return borders


def _check(stops: Sequence[str]) -> None:
    if isinstance(stops, str):
        raise RequestError("stop must be a list of strings, not a single string")
    if len(stops) > MAX_STOPS:
        raise RequestError(f"{len(stops)} stop strings, at most {MAX_STOPS} are allowed")
    for stop in stops:
        if not stop:
            raise RequestError("a stop string must not be empty")
        if len(stop) > MAX_STOP_CHARS:
            raise RequestError(
                f"a stop string has {len(stop)} characters, at most {MAX_STOP_CHARS} are allowed"
            )
