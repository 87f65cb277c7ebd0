"""The llmos attributes of modules, functions and ops: their names, each said once, and how they are read and written.

docs/architecture.md says what each means at which stage. Nothing else in the compiler spells one of these names; functions are read
through the views of compiler/ir/functions.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

import sympy

from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.size_text import size_text

T = TypeVar("T")

PREFIX = "llmos."

# of a module
SYMBOLS = "llmos.symbols"  # the symbols of its sizes, with their ranges
GUARDS = "llmos.guards"  # what sizes must satisfy beyond their ranges
INDUCTION_VARIABLES = "llmos.induction_variables"  # the induction variables of its loops, with their ranges
COMPUTED = "llmos.computed"  # the sizes that the program computes from data

# of an argument or a result of a function
KIND = "llmos.kind"  # INPUT or WEIGHT
NAME = "llmos.name"
DTYPE = "llmos.dtype"  # numpy's name, or bfloat16
SHAPE = "llmos.shape"  # an integer or a text of symbols for each dim
STATE = "llmos.state"  # of an input and an output: the weight that the state starts with
UPDATES = "llmos.updates"  # of a result: the name of the input whose new value it is
PACKED = "llmos.packed"  # of a weight: its PackedLayout
EXPR = "llmos.expr"  # of an index argument of a dispatch: the size that it is
INPUT, WEIGHT = "input", "weight"

# of a function
GPU_KERNEL = "llmos.gpu_kernel"  # that the host starts on a GPU
DISPATCH = "llmos.dispatch"  # the kind of a dispatch
LABEL = "llmos.label"  # what a dispatch computes, in the field's words
OUTER = "llmos.outer"  # of a row dispatch: loop dims before the reduced ones
TILING = "llmos.tiling"  # of a dispatch: its Tiling as text
WINOGRAD = "llmos.winograd"  # of a dispatch: outputs on a side of a tile
IN_PLACE = "llmos.in_place"  # of a dispatch: the tensor operand whose memory its one result takes
LLVM_IR = "llmos.llvm_ir"  # of a function that another compiler made: its text
FOLD = "llmos.fold"  # of a function that is run at compile time: its results are weights
ACTIVATION_RANGES = "llmos.activation_ranges"  # of an entry: lowest and highest element of each activation, by calibration
SLOTS = "llmos.slots"  # of an entry: the sizes of the slots of its arena

# of an op
ATTENTION = "llmos.attention"  # the number of the attention that an op is part of
SHAPES = "llmos.shapes"  # of a call: the shapes of its results
BUFFERS = "llmos.buffers"  # of a call or a loop: where its results go (passes/plan_memory.py)
WITHIN = "llmos.within"  # of a call: the argument of the entry in whose memory its one result lies
INDUCTION_VARIABLE = "llmos.induction_variable"  # of a loop: the name of its induction variable
SCAN_OUTPUT = "llmos.scan_output"  # of a tensor.insert_slice: each iteration of a loop writes one slice
COMPUTES = "llmos.computes"  # of a tensor.extract: the name of the size that it reads
QUANTIZE = "llmos.quantize"  # of a linalg.generic that is a quantization (compiler/analysis/quantization.py)
DEQUANTIZE = "llmos.dequantize"
GROUPED_ROWS = "llmos.grouped_rows"  # of a linalg.generic that takes columns of a product (compiler/analysis/grouped_rows.py)
PAGED_ATTENTION = "llmos.paged_attention"  # of a linalg.generic: its parameters (compiler/analysis/paged_attention.py)


# -- single attributes
def text_of(attributes: Mapping[str, ir.Attribute] | ir.DictAttr | ir.OpAttributeMap, key: str, default: str = "") -> str:
    """Return the text of a string attribute; `default` where there is none."""
    return str(ir.StringAttr(attributes[key]).value) if key in attributes else default


def integer_of(op: ir.Operation, key: str) -> int | None:
    """Return the number of an integer attribute such as WITHIN or IN_PLACE; None without one."""
    return int(ir.IntegerAttr(op.attributes[key]).value) if key in op.attributes else None


def integer(number: int) -> ir.Attribute:
    """Return a signless i64 attribute."""
    return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), number)


def strip(op: ir.Operation, keep: Sequence[str] = ()) -> None:
    """Remove every llmos attribute of an op but those to keep."""
    for name in [op.attributes[i].name for i in range(len(op.attributes))]:
        if name.startswith(PREFIX) and name not in keep:
            del op.attributes[name]


def ranges_attribute(ranges: Mapping[str, Sequence[int]]) -> ir.Attribute:
    """SYMBOLS or INDUCTION_VARIABLES: [min, max] by name."""
    return ir.DictAttr.get({name: ir.DenseI64ArrayAttr.get(list(bounds)) for name, bounds in ranges.items()})


def items(attr: ir.Attribute) -> dict[str, ir.Attribute]:
    """Return the entries of a dictionary attribute by name."""
    table = ir.DictAttr(attr)
    return {named.name: named.attr for named in (table[i] for i in range(len(table)))}


# -- shapes
def read_shape(attr: ir.Attribute) -> list[str | int]:
    """Return the entries of a SHAPE attribute, one a dim: a number, or the text of an expression over the symbols."""
    return [ir.StringAttr(dim).value if isinstance(dim, ir.StringAttr) else ir.IntegerAttr(dim).value for dim in ir.ArrayAttr(attr)]


def write_shape(dims: Sequence[str | int]) -> ir.Attribute:
    """Return a SHAPE attribute of numbers and texts."""
    return ir.ArrayAttr.get([ir.StringAttr.get(dim) if isinstance(dim, str) else integer(dim) for dim in dims])


def shape_attribute(shape: Sequence[sympy.Expr]) -> ir.Attribute:
    """Return a SHAPE attribute of symbolic sizes. Raises ValueError for a size that has no text (`size_text`)."""
    return write_shape([int(dim) if dim.is_Integer else size_text(dim) for dim in shape])


def callers_shape(dtype: str, dims: Sequence[T]) -> tuple[T, ...]:
    """Return the dimensions that a caller sees: of complex numbers all but the last one, which holds their two parts."""
    return tuple(dims[:-1] if dtype.startswith("complex") else dims)


# -- arguments and results
def argument_attributes(func: ir.Operation) -> list[dict[str, ir.Attribute]]:
    """Return `arg_attrs` of a function, one dict an argument; empty dicts where there are none."""
    return _attributes_of(func, "arg_attrs", len(func.regions[0].blocks[0].arguments))


def result_attributes(func: ir.Operation) -> list[dict[str, ir.Attribute]]:
    """Return `res_attrs` of a function, one dict a result; empty dicts where there are none."""
    return _attributes_of(func, "res_attrs", len(type_of(func).results))


def _attributes_of(func: ir.Operation, key: str, count: int) -> list[dict[str, ir.Attribute]]:
    if key not in func.attributes:
        return [{} for _ in range(count)]
    return [items(attr) for attr in ir.ArrayAttr(func.attributes[key])]


def set_argument_attributes(func: ir.Operation, attributes: Iterable[Mapping[str, ir.Attribute]]) -> None:
    """Replace `arg_attrs` of a function; `attributes` has one mapping an argument, in order."""
    func.attributes["arg_attrs"] = ir.ArrayAttr.get([ir.DictAttr.get(dict(each)) for each in attributes])


def append_argument_attributes(func: ir.Operation, attributes: Mapping[str, ir.Attribute]) -> None:
    """Add what `arg_attrs` has of the last argument, which is new; those of the others aren't read, since there may be a thousand."""
    others = [ir.DictAttr.get({})] * (len(func.regions[0].blocks[0].arguments) - 1)
    before = list(ir.ArrayAttr(func.attributes["arg_attrs"])) if "arg_attrs" in func.attributes else others
    func.attributes["arg_attrs"] = ir.ArrayAttr.get([*before, ir.DictAttr.get(dict(attributes))])


def type_of(func: ir.Operation) -> ir.FunctionType:
    """Return the type of a function."""
    return ir.FunctionType(ir.TypeAttr(func.attributes["function_type"]).value)


def tensor_attributes(
    name: str, dtype: str, *, kind: str = "", shape: Sequence[str | int] | None = None, marks: Mapping[str, str] = MappingProxyType({})
) -> ir.DictAttr:
    """Return what an argument or a result of an entry carries: `dtype` is the manifest's name, `shape` has one entry a dim.

    marks: more texts by key, such as {STATE: "mean"}.
    """
    texts = {NAME: name, DTYPE: dtype, **({KIND: kind} if kind else {}), **marks}
    found: dict[str, ir.Attribute] = {key: ir.StringAttr.get(text) for key, text in texts.items()}
    return ir.DictAttr.get({**found, **({SHAPE: write_shape(shape)} if shape is not None else {})})


@dataclass(frozen=True)
class PackedLayout:
    """How a weight lies as the right side of contractions: in panels [n/w][k][w] of float32, or [n/w][k/2][w][2] of bfloat16.

    n_axes, k_axes: the axes of the weight that n and k are made of, outermost first. columns: w; None leaves it to the sizes
    (backends/cpu/packing.py). tile: m of a winograd dispatch, whose kernels lie transformed; None of any other. k_per_word: of a weight
    that stays integers beside float32 rows, the numbers of a 32-bit word, 4 or 8; of its scales and zero points 1; None of any other.
    """

    n_axes: tuple[int, ...]
    k_axes: tuple[int, ...]
    columns: int | None = None
    tile: int | None = None
    k_per_word: int | None = None

    @classmethod
    def read(cls, attr: ir.Attribute) -> PackedLayout:
        """Read a PACKED attribute: the arrays of n and k axes, then those of columns, tile and k_per_word, empty or left out for None."""
        n_axes, k_axes, *rest = (tuple(int(each) for each in ir.DenseI64ArrayAttr(part)) for part in ir.ArrayAttr(attr))
        columns, tile, k_per_word = (next(iter(rest[i]), None) if i < len(rest) else None for i in range(3))
        return cls(n_axes, k_axes, columns, tile, k_per_word)

    @property
    def _parts(self) -> list[list[int]]:
        rest = [self.columns, self.tile, self.k_per_word]
        while rest and rest[-1] is None:
            rest.pop()
        return [list(self.n_axes), list(self.k_axes), *([] if each is None else [each] for each in rest)]

    def attribute(self) -> ir.Attribute:
        """Return the PACKED attribute that `read` reads."""
        return ir.ArrayAttr.get([ir.DenseI64ArrayAttr.get(part) for part in self._parts])

    def __str__(self) -> str:
        """As names of stored weights have it: [1][2,3,0]."""
        return "".join(f"[{','.join(map(str, part))}]" for part in self._parts)
