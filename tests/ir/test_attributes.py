"""The llmos attributes: each name stands once, and what is written is read back."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmos.compiler.ir.attributes
from llmos.compiler.ir.attributes import PackedLayout, read_shape, write_shape
from llmos.compiler.ir.bindings import context, ir

ROOT = Path(llmos.compiler.ir.attributes.__file__).parents[2]
NAMES = {
    value for value in vars(llmos.compiler.ir.attributes).values() if isinstance(value, str) and re.fullmatch(r"llmos\.[a-z_]+", value)
}
# Names that are no attributes of the IR: an entry point group, metadata of torch's and ONNX's graphs, a symbol of sizes.
OTHERS = {"llmos.backends", "llmos.opset_version", "llmos.complex", "llmos.threads"}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string of a module that is no docstring."""
    tree = ast.parse(path.read_text())
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    firsts = [node.body[0] for node in ast.walk(tree) if isinstance(node, scopes) and node.body]
    docstrings = {id(first.value) for first in firsts if isinstance(first, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def spelled(text: str) -> bool:
    """Whether a text holds the name of an attribute that is declared, or is a name that isn't."""
    declared = any(word in NAMES for word in re.findall(r"llmos\.[a-z_]+(?![.\w])", text))
    return declared or (re.fullmatch(r"llmos\.[a-z_]+", text) is not None and text not in OTHERS)


def test_attribute_names_stand_in_one_module() -> None:
    files = [path for folder in ("compiler", "passes") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found = [f"{path.relative_to(ROOT)}:{line}: {text[:60]!r}" for path in files for line, text in texts(path) if spelled(text)]
    elsewhere = [each for each in found if not each.startswith("compiler/ir/attributes.py:")]
    assert not elsewhere, f"import the constants of compiler/ir/attributes.py: {elsewhere}"
    assert len(found) == len(NAMES)  # each once


def test_names_are_found() -> None:
    assert spelled("llmos.kind") and spelled("argument 0: llmos.kind is weird") and spelled("llmos.brand_new")
    assert not spelled("llmos.") and not spelled("llmos.lstm_scan.default") and not spelled("llmos.complex")


@pytest.mark.parametrize("columns", [None, 16, 64])
@pytest.mark.parametrize("tile", [None, 2, 4])
@pytest.mark.parametrize("axes", [((0,), (1,)), ((1,), (0,)), ((0,), (2, 3, 1)), ((), ()), ((1, 2), (0,))])
def test_layouts_are_read_back(axes: tuple[tuple[int, ...], tuple[int, ...]], columns: int | None, tile: int | None) -> None:
    layout = PackedLayout(*axes, columns, tile)
    with context():
        assert PackedLayout.read(layout.attribute()) == layout


def test_layouts_in_names_of_weights() -> None:
    """As stored artifacts have them."""
    assert str(PackedLayout((0,), (2, 3, 1))) == "[0][2,3,1]"
    assert str(PackedLayout((0,), (1,), 64)) == "[0][1][64]"
    assert str(PackedLayout((0,), (2, 3, 1), None, 4)) == "[0][2,3,1][][4]"


@pytest.mark.parametrize("dims", [[], [1], ["batch", 0, "2*tokens - 1"]])
def test_shapes_are_read_back(dims: list[str | int]) -> None:
    with context(), ir.Location.unknown():
        assert read_shape(write_shape(dims)) == dims
