"""Stop strings in text that comes in pieces."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


class StopStrings:
    """Ends a text where the first of some strings is complete, and leaves that string out.

    Where the pieces are cut makes no difference: of strings that are complete at the same character, the one that begins first counts.
    Takes time and memory in proportion to the text, however long the strings are.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._matches = [_Match(each) for each in strings]
        self._first_chars = frozenset(each[0] for each in strings)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Return the text that is certain now: what may be the beginning of a stop string is held back. Behind the end there is none."""
        if not self._matches or self.found is not None:
            return "" if self.found is not None else text
        if not self._held and self._first_chars.isdisjoint(text):  # as nearly all text
            return text
        held = self._held + text
        for end, char in enumerate(text, len(self._held) + 1):
            complete = [match.string for match in self._matches if match.advance(char)]
            if complete:
                self.found = max(complete, key=len)
                self._held = ""
                return held[: end - len(self.found)]
        kept = max(match.length for match in self._matches)
        certain, self._held = held[: len(held) - kept], held[len(held) - kept :]
        return certain

    def finish(self) -> str:
        """Return what was held back, when nothing comes any more."""
        held, self._held = self._held, ""
        return held


class _Match:
    """How much of a string a text ends with (Knuth, Morris, Pratt 1977).

    length: of the longest end of the text that the string begins with, and is not all of it.
    """

    def __init__(self, string: str) -> None:
        self.string = string
        self.length = 0
        # By i: of string[: i + 1], the length of the longest end that it begins with, itself aside; as far as a text has needed them.
        self._borders = array("l", [0])

    def advance(self, char: str) -> bool:
        """Take the next character of the text. Return whether the string is complete: then nothing may follow."""
        string, length = self.string, self.length
        while length and string[length] != char:
            length = self._border(length)
        length += string[length] == char
        if length == len(string):
            return True
        self.length = length
        return False

    def _border(self, length: int) -> int:
        """Return the length of the longest end of string[:length] that it begins with, itself aside."""
        string, borders = self.string, self._borders
        while len(borders) < length:
            char, border = string[len(borders)], borders[-1]
            while border and string[border] != char:
                border = borders[border - 1]
            borders.append(border + (string[border] == char))
        return borders[length - 1]
