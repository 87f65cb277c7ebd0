"""No identifier holds a retired word (docs/glossary.md)."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("compiler", "passes", "runtime", "models")
RETIRED = frozenset(
    [
        "blame",
        "certificate",
        "certificates",
        "cluster",
        "clusters",
        "coded",
        "contest",
        "culprit",
        "dear",
        "island",
        "islands",
        "neutral",
        "proof",
        "proofs",
        "recipe",
        "recipes",
        "recognise",
        "shadow",
        "sliding",
        "stencil",
        "stencils",
        "stranger",
        "strangers",
        "turn",
        "turned",
        "turns",
        "usual",
        "watcher",
        "widen",
        "widened",
        "widening",
    ]
)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def words_of(identifier: str) -> set[str]:
    """The words of a snake_case or CamelCase name, in lower case."""
    return {word.lower() for word in _WORD.findall(identifier)}


def retired_in(text: str) -> Iterator[str]:
    """`line: name` of each identifier with a retired word."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and words_of(token.string) & RETIRED:
            yield f"{token.start[0]}: {token.string}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_identifier_holds_a_retired_word(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = [f"{path.relative_to(ROOT)}:{each}" for path in files for each in retired_in(path.read_text())]
    assert not found, "\n".join(["see docs/glossary.md", *found])


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_module_is_named_by_a_retired_word(folder: str) -> None:
    assert not [path for path in (ROOT / folder).rglob("*.py") if words_of(path.stem) & RETIRED]


@pytest.mark.parametrize("name", ["num_turns", "IslandCount", "CERTIFICATE_MEMBER", "_is_dear"])
def test_a_retired_word_is_found(name: str) -> None:
    assert list(retired_in(f"{name} = 1\n")) == [f"1: {name}"]


def test_words_inside_others_are_none() -> None:
    assert not list(retired_in("return_value = unusual_islander\n"))
