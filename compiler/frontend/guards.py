"""Guards that torch.export found on sizes beyond their ranges: equalities, inequalities and divisibility of symbols."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.utils._sympy import functions as torch_sympy
from torch.utils._sympy.printers import PythonPrinter

from llmos.compiler.frontend.dims import Dim, Sizes
from llmos.compiler.ir.rounded_sizes import FloorMul
from llmos.runtime.errors import UnsupportedError

TORCH = Path(torch.__file__).parent
RELATIONS: Mapping[type[sympy.Basic], str] = {
    sympy.Eq: "==",
    sympy.Ne: "!=",
    sympy.Lt: "<",
    sympy.Le: "<=",
    sympy.Gt: ">",
    sympy.Ge: ">=",
}
_READABLE = (
    sympy.Add,
    sympy.Mul,
    sympy.Pow,
    sympy.Integer,
    sympy.Symbol,
    sympy.Min,
    sympy.Max,
    sympy.Mod,
    torch_sympy.Min,
    torch_sympy.Max,
    torch_sympy.Mod,
    torch_sympy.PythonMod,
    torch_sympy.FloorDiv,
    torch_sympy.CleanDiv,
    FloorMul,
)


def find_conditions(program: ExportedProgram, sizes: Sizes) -> tuple[list[str], list[str]]:
    """Return the conditions that the symbols' ranges don't imply, simplest first, in the grammar of compiler/ir/guards.py, and those that
    the grammar can't express.

    Inequalities from torch's own code are left out: they only record that no example dim was 1 or equal to another.
    """
    found: dict[str, None] = {}
    unread: dict[str, None] = {}
    for relation in (*_relations(program), *_slices(program)):
        sides = _sides(relation, sizes)
        if sides is None or _is_implied(relation, sizes, *sides):
            continue
        text = f"{_text(sides[0])} {RELATIONS[type(relation)]} {_text(sides[1])}"
        readable = all(
            isinstance(each, _READABLE) for side in sides if not isinstance(side, int) for each in sympy.preorder_traversal(side)
        )
        (found if readable else unread).setdefault(text)
    return sorted(found, key=lambda text: (len(text), text)), list(unread)


def _relations(program: ExportedProgram) -> Iterator[sympy.Rel]:
    """Yield the guards of the shape environment, or, for a program loaded from a file, those that export wrote as text."""
    sizes = [size for node in _placeholders(program) for size in _shape(node) if isinstance(size, torch.SymInt)]
    if not sizes:
        return
    environment: Any = sizes[0].node.shape_env
    texts = getattr(program, "_guards_code", ())
    for guard in environment.guards:
        condition = environment.replace(guard.expr)
        for relation in condition.args if isinstance(condition, sympy.And) else (condition,):
            if type(relation) in RELATIONS and not (_says_not_one(relation) and _is_torchs(guard.sloc.framework_loc)):
                yield relation
    for text in texts if len(texts) > len(environment.guards) else ():
        relation = _parsed(text, program)
        if relation is not None and not isinstance(relation, sympy.Ne):
            yield relation


def _says_not_one(relation: sympy.Rel) -> bool:
    """Whether a relation only excludes 1, also of a number of elements (1 < h*w)."""
    if isinstance(relation, sympy.Eq | sympy.Ne):
        return isinstance(relation, sympy.Ne)
    count, least = relation.gts, relation.lts + (1 if isinstance(relation, sympy.Lt | sympy.Gt) else 0)
    return isinstance(count, sympy.Mul) and len(count.free_symbols) > 1 and least == 2


def _slices(program: ExportedProgram) -> Iterator[sympy.Rel]:
    """Yield the guards of slices: export assumes that `x[:2]` has two elements and `x[1:-1]` two fewer than x without checking."""
    for node in program.graph.nodes:
        if str(node.target) != "aten.slice.Tensor" or not node.args:
            continue
        given: list[Any] = [*node.args, *(None, 0, None, None, 1)[len(node.args) :]]
        x, dim, start, _, step = given
        size, whole = _shape(node)[dim], _shape(x)[dim]
        if isinstance(size, torch.SymInt):
            yield sympy.Ge(size.node.expr, 0, evaluate=False)
        elif isinstance(whole, torch.SymInt) and size and isinstance(start, int | None) and isinstance(step, int):
            first = start or 0
            needed = -first if first < 0 else first + (size - 1) * step + 1
            yield sympy.Ge(whole.node.expr, needed, evaluate=False)


def _placeholders(program: ExportedProgram) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == "placeholder"]


def _shape(node: fx.Node) -> tuple[Any, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _is_torchs(place: Any) -> bool:
    """Whether a guard comes from a line of torch's own code, not the model's."""
    return place is None or TORCH in Path(str(getattr(place, "filename", place))).parents


def _sides(relation: sympy.Rel, sizes: Sizes) -> tuple[Dim, Dim] | None:
    """Return both sides in the program's symbols; None if one is data-dependent, which is checked at run time."""
    try:
        return sizes.dim(relation.lhs), sizes.dim(relation.rhs)
    except UnsupportedError:
        return None


def _is_implied(relation: sympy.Rel, sizes: Sizes, left: Dim, right: Dim) -> bool:
    low, high = sizes.bounds(sizes.simplify(sympy.sympify(left) - sympy.sympify(right)))
    return {
        sympy.Eq: low == high == 0,
        sympy.Ne: low > 0 or high < 0,
        sympy.Lt: high < 0,
        sympy.Le: high <= 0,
        sympy.Gt: low > 0,
        sympy.Ge: low >= 0,
    }[type(relation)]


def _text(side: Dim) -> str:
    return str(side) if isinstance(side, int) else str(PythonPrinter().doprint(side))


# -- export's text: "(L['x'].size()[1]*L['x'].size()[0]) == 8"
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: torch_sympy.FloorDiv,
    ast.Mod: torch_sympy.PythonMod,
}
_COMPARE: Mapping[type[ast.cmpop], Any] = {
    ast.Eq: sympy.Eq,
    ast.NotEq: sympy.Ne,
    ast.Lt: sympy.Lt,
    ast.LtE: sympy.Le,
    ast.Gt: sympy.Gt,
    ast.GtE: sympy.Ge,
}


def _parsed(text: str, program: ExportedProgram) -> sympy.Rel | None:
    """Parse a relation; None for text that isn't a relation of input sizes."""
    shapes = {node.name: _shape(node) for node in _placeholders(program)}
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Compare) or len(node.ops) != 1:
            return None
        found = _COMPARE[type(node.ops[0])](_expression(node.left, shapes), _expression(node.comparators[0], shapes))
    except (KeyError, IndexError, SyntaxError, TypeError, ValueError):
        return None
    return found if isinstance(found, sympy.Rel) else None


def _expression(node: ast.expr, shapes: Mapping[str, tuple[Any, ...]]) -> Any:
    match node:
        case ast.Constant(value=int() as value):
            return sympy.Integer(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_expression(operand, shapes)
        case ast.BinOp(left=left, op=op, right=right):
            return _BINARY[type(op)](_expression(left, shapes), _expression(right, shapes))
        case ast.Call(func=ast.Name(id="min" | "max" as name), args=args):
            return {"min": sympy.Min, "max": sympy.Max}[name](*[_expression(each, shapes) for each in args])
        case ast.Subscript(value=ast.Call(func=ast.Attribute(value=source, attr="size")), slice=ast.Constant(value=int() as axis)):
            size = shapes["_".join(_path(source))][axis]
            return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
    raise ValueError(ast.dump(node))


def _path(node: ast.expr) -> list[str]:
    """Return the keys of L['x']['k'][0], which export joins to the input's name."""
    match node:
        case ast.Name(id="L"):
            return []
        case ast.Subscript(value=value, slice=ast.Constant(value=key)):
            return [*_path(value), str(key)]
    raise ValueError(ast.dump(node))
