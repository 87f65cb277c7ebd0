"""The house rules of passes/: one pass a file, named after it, documented with IR, tested."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmos.passes
from llmos.passes import pass_class, pass_names
from llmos.passes._registry import nearest_names, pass_modules, passes_defined_in
from llmos.passes._upstream import is_registered
from llmos.passes._upstream_names import UPSTREAM_PASS_NAMES

FOLDER = Path(llmos.passes.__path__[0])
TESTS = Path(__file__).parent


def path_of(name: str) -> str:
    """Where a pass lies below passes/, without the extension."""
    return pass_modules()[name].removeprefix("llmos.passes.").replace(".", "/")


@pytest.mark.parametrize("name", pass_names())
def test_each_file_holds_the_one_pass_it_is_named_after(name: str) -> None:
    assert [found.name for found in passes_defined_in(pass_modules()[name])] == [name]
    assert pass_class(name).__dataclass_params__.frozen  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", pass_names())
def test_each_pass_shows_the_ir_before_and_after(name: str) -> None:
    text = ((pass_class(name).__doc__ or "") + (FOLDER / f"{path_of(name)}.py").read_text().split('"""')[1]).lower()
    assert "before" in text and "after" in text


@pytest.mark.parametrize("name", pass_names())
def test_each_pass_has_a_test_file_of_its_name(name: str) -> None:
    path = TESTS / path_of(name)
    assert (path.parent / f"test_{path.name}.py").is_file()


@pytest.mark.parametrize("name", pass_names())
def test_each_pass_can_be_made_without_options(name: str) -> None:
    assert str(pass_class(name)()) == name


def test_an_unknown_pass_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        pass_class("no-such-pass")


def test_names_are_kebab_case_and_not_of_the_machinery() -> None:
    assert all(name == name.lower() and "_" not in name for name in pass_names())
    assert "manager" not in pass_names()


def test_suggestions_are_few_and_real() -> None:
    assert nearest_names("canonicalise") == ["canonicalize"]
    assert nearest_names("qqqqqq") == []


def test_every_upstream_name_exists_in_the_pinned_mlir() -> None:
    sample = UPSTREAM_PASS_NAMES[::8]
    assert [name for name in sample if not is_registered(name)] == []
