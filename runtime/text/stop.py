"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Ends a text where the first of some strings is complete, and leaves that string out.

    Where the pieces are cut makes no difference: of strings that are complete at the same character, the one that begins first counts.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(strings)
        self._beginnings = frozenset(each[:count] for each in strings for count in range(1, len(each)))
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Return the text that is certain now: what may be the beginning of a stop string is held back. Behind the end there is none."""
        if not self._strings or self.found is not None:
            return "" if self.found is not None else text
        held = self._held + text
        end = self._first(held)
        if end is None:
            kept = self._num_open(held)
            certain, self._held = held[: len(held) - kept], held[len(held) - kept :]
            return certain
        self._held = ""
        return held[:end]

    def finish(self) -> str:
        """Return what was held back, when nothing comes any more."""
        held, self._held = self._held, ""
        return held

    def _first(self, text: str) -> int | None:
        """Return where the text ends, and keep the string that ends it."""
        places = [(begin + len(each), begin, each) for each in self._strings if (begin := text.find(each)) >= 0]
        if not places:
            return None
        _, begin, self.found = min(places)
        return begin

    def _num_open(self, text: str) -> int:
        """Return the length of the longest end of `text` that may be the beginning of a stop string."""
        lengths = range(min(len(text), self._longest), 0, -1)
        return next((count for count in lengths if text[-count:] in self._beginnings), 0)
