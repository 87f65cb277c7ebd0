"""Stop strings end a text at the same place however it is cut."""

from __future__ import annotations

import random
from typing import Any

import pytest

from llmos.runtime.text.stop import StopStrings


def expected(text: str, strings: list[str]) -> tuple[str, str | None]:
    """The text up to a stop string, and that, by the definition: character by character."""
    for end in range(1, len(text) + 1):
        complete = [each for each in strings if text[:end].endswith(each)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def test_every_cut_gives_the_same() -> None:
    ends = 0
    for seed in range(3000):
        rng = random.Random(seed)
        strings = ["".join(rng.choice("ab") for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(4))]
        text = "".join(rng.choice("abc") for _ in range(rng.randrange(20)))
        stop, out, at = StopStrings(strings), "", 0
        while at < len(text):
            size = rng.randrange(1, 5)
            out += stop.push(text[at : at + size])
            assert not any(each in out for each in strings)
            at += size
        out += stop.finish()
        assert (out, stop.found) == expected(text, strings), (text, strings)
        ends += stop.found is not None
    assert ends > 500


def test_only_what_may_begin_a_stop_string_is_held_back() -> None:
    stop = StopStrings(["\nUser:", "###"])
    assert stop.push("Hi\n") == "Hi"
    assert stop.push("Us") == ""
    assert stop.push("a #") == "\nUsa "
    assert stop.push("# x") == "## x"
    assert stop.push("#") == ""
    assert stop.finish() == "#"


def test_a_long_string_takes_work_in_proportion_to_the_text() -> None:
    """Compared with each of its beginnings, a text would take the square of that."""
    count = 0

    class Counting(str):
        def __getitem__(self, key: Any) -> str:
            nonlocal count
            count += 1
            return str.__getitem__(self, key)

    for string in ("a" * 50_000 + "b", "ab" * 25_000 + "c", "a" * 1_000_000):
        count = 0
        stop = StopStrings([Counting(string)])
        text = (string[:400] + "x") * 50
        assert "".join(map(stop.push, text)) + stop.finish() == text
        assert count <= 8 * len(text)


@pytest.mark.parametrize("strings", [[], ["x"]])
def test_nothing_is_held_back_without_need(strings: list[str]) -> None:
    stop = StopStrings(strings)
    assert stop.push("abc") == "abc"


def test_nothing_follows_the_end() -> None:
    stop = StopStrings(["b"])
    assert [stop.push("ab"), stop.push("cd"), stop.finish()] == ["a", "", ""]
    assert stop.found == "b"
