"""Every public function, class and method says what it gives."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("compiler/analysis", "compiler/backends", "compiler/codegen", "compiler/frontend", "compiler/ir", "passes")


def undocumented(body: Sequence[ast.stmt], prefix: str = "") -> Iterator[str]:
    """`line: name` of each public definition without a docstring. What a function or a private class holds is private."""
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_") or _is_overload(node):
            continue
        if ast.get_docstring(node) is None:
            yield f"{node.lineno}: {prefix}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield from undocumented(node.body, f"{prefix}{node.name}.")


def _is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> bool:
    """Whether a definition only declares types, or continues a documented property."""
    names = [ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list]
    return not {"overload", "setter", "deleter"}.isdisjoint(names)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_public_definition_has_a_docstring(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = [f"{path.relative_to(ROOT)}:{each}" for path in files for each in undocumented(ast.parse(path.read_text()).body)]
    assert not found, "\n".join(["say what these give, take and raise", *found])


def test_an_undocumented_definition_is_found() -> None:
    text = 'def f(): ...\nclass A:\n    "A."\n    def g(self): ...\n    class B: ...\nasync def h(): ...\n'
    assert list(undocumented(ast.parse(text).body)) == ["1: f", "4: A.g", "5: A.B", "6: h"]


@pytest.mark.parametrize(
    "text",
    [
        'def f():\n    "F."\n    def inner(): ...\n',
        "def _f(): ...\n",
        "class _A:\n    def g(self): ...\n",
        'class A:\n    "A."\n    def __len__(self): ...\n    def _g(self): ...\n',
        "@typing.overload\ndef f(): ...\n",
        'class A:\n    "A."\n    @x.setter\n    def x(self, value): ...\n',
    ],
    ids=["nested", "private", "method of a private class", "dunder and private methods", "overload", "setter"],
)
def test_private_and_nested_definitions_need_none(text: str) -> None:
    assert not list(undocumented(ast.parse(text).body))
