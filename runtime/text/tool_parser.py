"""Calls of tools in the text of an answer, found as it comes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass

from llmos.runtime.text.tools import NAMED, ToolFormat

_ARGUMENTS = ("arguments", "parameters")
_PIECE = 4096  # characters that are looked at in one go: what is left of a text is copied for each of its parts
_MAX_BLANK = 256  # characters of whitespace before an object that must follow; with more of them it is none
_MAX_MARK = 256
_RUN = re.compile(r'[^"\\]+')  # of a string


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of call `index`. name: with the first delta of a call, "" in later ones. arguments: more of their JSON, as written."""

    index: int
    name: str
    arguments: str


Piece = str | ToolCallDelta


class ToolParser:
    """Splits an answer into content and calls. What the pieces are, joined, doesn't depend on where the text was cut.

    names: of the functions that there are; a call of another one is content. begun: whether the text starts within calls, as where the
    prompt ends with their beginning. parallel: whether calls behind the first one count.

    What isn't a whole call is content, from its beginning on, unless its name and the beginning of its arguments were there: then the
    arguments are as long as the text. Whitespace around calls is dropped, and so is what the end of the text has left of a further call.

    Takes time and memory in proportion to the text.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, begun: bool = False, parallel: bool = True) -> None:
        self._form = form
        self._names = names
        self._longest = max(map(len, names), default=0)
        self._parallel = parallel
        self._text = ""  # not understood yet
        self._call: _Call | None = None
        self._held: list[str] = []  # whitespace of the content, which counts if content follows
        self._taken: list[str] = []  # of `_text`, since calls began: it becomes content if they are none
        self._mark = ""  # what `_taken` has between objects, without whitespace, and with one "," for separators
        self._in_calls = self._begun = begun
        self._at_start = form.starts_answer
        self.num_calls = 0

    def push(self, text: str) -> list[Piece]:
        """Return what is certain now."""
        pieces: list[Piece] = []
        for begin in range(0, len(text), _PIECE):
            self._text += text[begin : begin + _PIECE]
            while self._step(pieces):
                pass
        return _joined(pieces)

    def finish(self) -> list[Piece]:
        """Return what was held back, when nothing comes any more."""
        pieces = self._given_up() if self._call is None or not self._call.is_certain else []
        if self._held and not self.num_calls:
            pieces += self._held
        self._held = []
        return _joined(pieces)

    def _step(self, pieces: list[Piece]) -> bool:
        """Understand more of the text. Return False if more of it is needed."""
        if self._call is not None:
            return self._in_object(pieces, self._call)
        if self._in_calls:
            return self._between_objects(pieces)
        return self._in_content(pieces)

    def _in_content(self, pieces: list[Piece]) -> bool:
        if self._at_start:
            stripped = self._text.lstrip()
            num_blank = len(self._text) - len(stripped)
            if not stripped and num_blank <= _MAX_BLANK:
                return False
            self._at_start = False
            if stripped.startswith("{") and num_blank <= _MAX_BLANK:
                self._enter(self._text[:num_blank], "")
                self._text = stripped
                return True
        begin = self._form.begin
        place = self._text.find(begin)
        if place >= 0:
            self._add_content(pieces, self._text[:place])
            self._enter(begin, begin)
            self._text = self._text[place + len(begin) :]
            return True
        certain = len(self._text) - _num_open(self._text, begin)
        self._add_content(pieces, self._text[:certain])
        self._text = self._text[certain:]
        return False

    def _add_content(self, pieces: list[Piece], text: str) -> None:
        kept = text.rstrip()
        if kept and (self._parallel or not self.num_calls):
            pieces += [*self._held, kept]
        if kept:
            self._held.clear()
        if len(kept) < len(text):
            self._held.append(text[len(kept) :])

    def _between_objects(self, pieces: list[Piece]) -> bool:
        """Skip what stands before the next object, or leave the calls."""
        opens = self._form.first == "[" and self._mark == ("" if self._begun and not self.num_calls else self._form.begin)
        stripped = self._text.lstrip(" \t\r\n,;[" if opens else " \t\r\n,;")
        count = len(self._text) - len(stripped)
        self._add_mark("," if not opens and self._text[:count].strip() else "")
        self._skip(count)
        if not stripped:
            return False
        if stripped[0] == "{":
            self._call = _Call(self.num_calls, self._names)
            return True
        if self._form.first == "[" and self._named_call(stripped):
            return self._call is not None
        closing = [each for each in (self._form.end, self._form.last.strip(), self._form.begin) if each]
        found = next((each for each in closing if stripped.startswith(each)), None)
        if found is not None and (self.num_calls or found != self._form.begin):
            self._add_mark(found)
            self._skip(len(found))
            if found != self._form.begin:
                self._leave()
            return True
        if any(each.startswith(stripped) for each in closing):
            return False
        if self._taken_is_called():
            self._leave()
        else:
            self._give_up(pieces)
        return True

    def _named_call(self, stripped: str) -> bool:
        """Begin a call in Mistral's newer form. Return False if it is none."""
        name, named, rest = stripped[: self._longest + len(NAMED) + _MAX_BLANK + 1].partition(NAMED)
        if named:
            given = rest.lstrip()
            num_blank = len(rest) - len(given)
            if name not in self._names or num_blank > _MAX_BLANK or (given and given[0] != "{"):
                return False
            if given:
                self._skip(len(name) + len(NAMED) + num_blank)
                self._call = _Call(self.num_calls, self._names, name)
            return True
        begun = [each for each in self._names if each.startswith(stripped) or stripped.startswith(each)]
        return any(NAMED.startswith(stripped[len(each) :]) for each in begun)

    def _in_object(self, pieces: list[Piece], call: _Call) -> bool:
        count = call.push(self._text)
        self._skip(count)
        if call.is_malformed:
            self._call = None
            self._give_up(pieces)
            return True
        delta = call.take()
        if delta is not None:
            self._held.clear()
            if self._parallel or not call.index:
                pieces.append(delta)
        if not call.is_whole:
            return False
        self._call = None
        self.num_calls += 1
        self._enter("", "")
        return True

    def _skip(self, count: int) -> None:
        if count:
            self._taken.append(self._text[:count])
            self._text = self._text[count:]

    def _add_mark(self, text: str) -> None:
        """Note what is taken between objects, as far as `_mark` may still be of separators or the beginning of calls alone."""
        if len(self._mark) < _MAX_MARK and not (text == "," and self._mark.endswith(",")):
            self._mark += text

    def _taken_is_called(self) -> bool:
        """Whether all that was taken since the calls began are calls, and what may stand between them."""
        return bool(self.num_calls) and not self._mark.strip(",")

    def _enter(self, taken: str, mark: str) -> None:
        self._in_calls, self._taken, self._mark = True, [taken], mark

    def _leave(self) -> None:
        self._in_calls, self._taken, self._mark = False, [], ""

    def _give_up(self, pieces: list[Piece]) -> None:
        """Make content of what was taken for calls."""
        text = "".join(self._taken)
        self._leave()
        self._add_content(pieces, text)

    def _given_up(self) -> list[Piece]:
        pieces: list[Piece] = []
        # The beginning of one more call, which the end has cut, is no content either.
        text = "" if self._in_calls and (self._begun or self.num_calls) else "".join(self._taken) + self._text
        self._call = None
        self._leave()
        self._add_content(pieces, text)
        self._text = ""
        return pieces


class _Call:
    """One call, a JSON object. name: where the object is of the arguments alone."""

    def __init__(self, index: int, names: Collection[str], name: str = "") -> None:
        self.index = index
        self.is_malformed = False
        self.is_whole = False
        self._names = names
        self._name = name
        self._bare = bool(name)
        self._key: str | None = None
        self._value: list[str] = []  # of the key
        self._arguments: list[str] = []  # that were not given
        self._has_arguments = False
        self._is_closed = False
        self._is_given = False  # the call and its name
        self._depth = 0
        self._string: list[str] | None = None
        self._escaped = False

    @property
    def is_certain(self) -> bool:
        """Whether its name and the beginning of its arguments are there: then it is a call, whatever follows."""
        return bool(self._name) and self._has_arguments

    def push(self, text: str) -> int:
        """Read text up to the end of the object, or to what is malformed. Return how many characters were read."""
        place = 0
        while place < len(text) and not (self.is_whole or self.is_malformed):
            run = _RUN.match(text, place) if self._string is not None and not self._escaped else None
            part = text[place] if run is None else run[0]
            self._read(part)
            place += len(part)
        return place

    def take(self) -> ToolCallDelta | None:
        """Return what is new and certain."""
        if not self.is_certain or (self._is_given and not self._arguments):
            return None
        found = ToolCallDelta(self.index, "" if self._is_given else self._name, "".join(self._arguments))
        self._is_given, self._arguments = True, []
        return found

    def _read(self, char: str) -> None:
        """Read a character, or more of them that are of a string, and don't end it."""
        if self._bare:
            self._has_arguments = True
            self._arguments.append(char)
        in_value = self._key is not None and self._depth >= 1
        if self._string is not None:
            self._read_string(char, in_value)
            return
        if char == '"':
            self._string = [char]
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
        elif self._depth == 1 and char == ":" and self._value and not in_value and not self._bare:
            self._begin_value()
            return
        closes = self._depth == 0
        if self._bare:
            self.is_whole = closes
        elif (self._depth == 1 and char == ",") or closes:
            self._end_value()
            if closes and not self.is_malformed:
                self._end()
        elif in_value:
            self._add(char)

    def _read_string(self, char: str, in_value: bool) -> None:
        assert self._string is not None
        self._string.append(char)
        if in_value:
            self._add(char)
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            if not in_value and self._depth == 1:
                self._value = self._string
            self._string = None

    def _begin_value(self) -> None:
        key = _loaded("".join(self._value))
        self._value = []
        if isinstance(key, str) or self.is_certain:
            self._key = key if isinstance(key, str) else ""
        else:
            self.is_malformed = True

    def _add(self, char: str) -> None:
        """Add a character to the value of the key; that of the arguments is given as it comes, where it is an object."""
        if self._string is None and char.isspace() and (not self._value or (self._value[0] == "{" and self._depth == 1)):
            return
        self._value.append(char)
        if self._key in _ARGUMENTS and self._value[0] == "{" and not self._is_closed:
            self._has_arguments = True
            self._arguments.append(char)

    def _end_value(self) -> None:
        key, text = self._key, "".join(self._value).strip()
        self._key, self._value = None, []
        self._is_closed |= key in _ARGUMENTS  # what a second one holds is left out
        if self.is_certain:
            return
        if key == "name":
            name = _loaded(text)
            if not isinstance(name, str) or name not in self._names or self._name:
                self.is_malformed = True
            else:
                self._name = name
        elif key in _ARGUMENTS and not text.startswith("{"):
            found = _loaded(text)
            if found is None and text == "null":
                found = "{}"
            if not isinstance(found, str):  # some models write the JSON of the arguments as a string
                self.is_malformed = True
            else:
                self._has_arguments, self._arguments = True, [found]

    def _end(self) -> None:
        self.is_malformed = not self._name
        self.is_whole = bool(self._name)
        if not self._has_arguments:
            self._has_arguments, self._arguments = True, ["{}"]


def _loaded(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _num_open(text: str, begin: str) -> int:
    """Return the length of the longest end of `text` that may be the beginning of `begin`."""
    return next((count for count in range(min(len(text), len(begin) - 1), 0, -1) if begin.startswith(text[-count:])), 0)


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Join pieces of the same kind that follow each other."""
    found: list[list[Piece]] = []
    for piece in pieces:
        last = found[-1][-1] if found else None
        continues = isinstance(piece, ToolCallDelta) and isinstance(last, ToolCallDelta) and not piece.name and piece.index == last.index
        if continues or (isinstance(piece, str) and isinstance(last, str)):
            found[-1].append(piece)
        else:
            found.append([piece])
    return [_whole(each) for each in found]


def _whole(pieces: list[Piece]) -> Piece:
    """Join pieces of one kind."""
    first = pieces[0]
    if isinstance(first, str):
        return "".join(piece for piece in pieces if isinstance(piece, str))
    return ToolCallDelta(first.index, first.name, "".join(piece.arguments for piece in pieces if isinstance(piece, ToolCallDelta)))
