"""Lower an exported FX graph to one linalg function: ops of our table directly, the rest as calls that torch-mlir lowers (fallback
subgraphs.py)."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from llmos.compiler.frontend.builder import Builder, Meta, Tensor
from llmos.compiler.frontend.dims import Shape, Sizes
from llmos.compiler.frontend.fallback_subgraphs import FallbackSubgraphs
from llmos.compiler.frontend.ops.data_sizes import number_of
from llmos.compiler.frontend.ops.errors import LoweringError, NotLowered
from llmos.compiler.frontend.ops.table import IGNORED, table
from llmos.compiler.frontend.symbolic_scalars import SymbolicScalar
from llmos.compiler.ir.bindings import arith, func, ir
from llmos.runtime.errors import LlmosError, UnsupportedError


@dataclass
class GraphLowering:
    """Lowers one graph into the function body at the current insertion point."""

    builder: Builder
    sizes: Sizes
    fallback_subgraphs: FallbackSubgraphs
    known: Mapping[str, Callable[..., Any]] = field(default_factory=table)
    _values: dict[fx.Node, Any] = field(default_factory=dict)

    def bind(self, node: fx.Node, value: Any) -> None:
        """Bind the value of a placeholder: a tensor, or a number."""
        self._values[node] = value

    def run(self, graph: fx.Graph) -> list[Any]:
        """Lower the graph; return the values of its outputs in order."""
        for node in graph.nodes:
            if node.op == "call_function":
                self.lower(node)
            elif node.op == "output":
                return [self._argument(each) for each in node.args[0]]
        raise AssertionError("a graph without output")

    def stand_in(self, node: fx.Node) -> None:
        """Bind a placeholder tensor of the node's shape, for coverage reports; a size that can't be expressed becomes 1."""
        val = node.meta.get("val")
        self._values[node] = [self._stand_in(each) for each in val] if isinstance(val, list | tuple) else self._stand_in(val)

    def _stand_in(self, val: Any) -> Any:
        if not isinstance(val, torch.Tensor):
            return 1
        shape = []
        for size in val.shape:
            try:
                shape.append(self.sizes.dim(size))
            except UnsupportedError:
                shape.append(1)
        return self.builder.dense_tensor(self.builder.empty(tuple(shape), val.dtype), tuple(shape), val.dtype)

    def lower(self, node: fx.Node) -> None:
        """Lower one call and bind its value. Raises UnsupportedError with op and source line, LoweringError for a compiler bug."""
        try:
            with ir.Location.name(place_in_model(node)):
                self._values[node] = self._value(node)
        except LlmosError as error:
            text = str(error) if str(error).startswith(op_name(node)) else f"{op_name(node)}: {error}"
            line = source_line(node)
            raise type(error)(text if line and line in text else text + line) from None
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "no reason given")
            message = f"{op_name(node)}: its lowering failed: {type(error).__name__}: {reason}{source_line(node)}"
            raise LoweringError(message, node) from error

    def _value(self, node: fx.Node) -> Any:
        if op_name(node) in IGNORED or not _is_wanted(node):
            return None
        if op_name(node) in _READS_NUMBER and not isinstance(node.meta["val"], int | float | bool):
            return self._number_read(node)
        if isinstance(node.meta.get("val"), int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool):
            return self._scalar(node.meta["val"])
        if node.target is operator.getitem:
            return self._item(node)
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            inner = next((str(each) for each in node.args if isinstance(each, torch._ops.OpOverload)), "")
            raise UnsupportedError(f"control flow and ops with effects can't be compiled{f' ({inner})' if inner else ''}")
        if (nothing := self._without_elements(node)) is not None:
            return nothing
        lowering = self.known.get(op_name(node))
        if lowering is not None:
            try:
                args, kwargs = self._call_arguments(node)
                meta = self._meta(node.meta["val"])
                found = lowering(self.builder, meta, *args, **kwargs)
                self._check_result(found, meta)
                return found
            except NotLowered:
                pass
        return self._fallback_subgraph(node)

    def _number_read(self, node: fx.Node) -> Any:
        if not isinstance(node.meta["val"], torch.SymInt):
            raise UnsupportedError("only integers can be read from data as numbers: compute with the tensor instead")
        return number_of(self.builder, self._argument(node.args[0]), self.sizes.dim(node.meta["val"]))

    def _check_result(self, found: Any, meta: Any) -> None:
        """Raise UnsupportedError for a result whose shape or dtype differs from torch's metadata; None marks an omitted result."""
        if isinstance(meta, list):
            if len(found) != len(meta):
                raise UnsupportedError(f"its lowering gives {len(found)} results where torch gives {len(meta)}")
            for each, expected in zip(found, meta, strict=True):
                self._check_result(each, expected)
        elif found is not None and (found.dtype != meta.dtype or self._differ(found.shape, meta.shape)):
            have, want = (f"{str(each.dtype).removeprefix('torch.')}[{', '.join(map(str, each.shape))}]" for each in (found, meta))
            raise UnsupportedError(f"its lowering gives {have} where torch gives {want}")

    def _differ(self, a: Shape, b: Shape) -> bool:
        return len(a) != len(b) or any(self.sizes.differ(x, y) for x, y in zip(a, b, strict=True))

    def _without_elements(self, node: fx.Node) -> Any:
        """Return the results of an op whose results are all empty; None for any other."""
        val = node.meta.get("val")
        values = val if isinstance(val, list | tuple) else [val]
        if node.meta.get("unbacked_bindings") or not values or not all(_has_no_elements(each) for each in values):
            return None
        metas = [self._meta(each) for each in values]
        made = [self.builder.dense_tensor(self.builder.fill(m.shape, m.dtype, 0), m.shape, m.dtype) for m in metas]
        return made if isinstance(val, list | tuple) else made[0]

    def _item(self, node: fx.Node) -> Any:
        source, index = node.args
        found = self._values[source][index]  # type: ignore[index]
        if found is None:
            raise UnsupportedError(f"result {index} of {op_name(source)} isn't computed by compiled models")  # type: ignore[arg-type]
        return found

    def _scalar(self, value: Any) -> Any:
        if isinstance(value, int | float | bool):
            return value
        if isinstance(value, torch.SymInt):
            return self.sizes.dim(value)
        dtype = torch.float64 if isinstance(value, torch.SymFloat) else torch.bool
        return SymbolicScalar(self.sizes.expression(value), dtype, self.builder.index)

    def _meta(self, val: Any) -> Any:
        if isinstance(val, torch.Tensor):
            return Meta(self.sizes.shape(val.shape), val.dtype)
        return [self._meta(each) for each in val]

    def _call_arguments(self, node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
        numbers = _numbers_of(node.target)
        # device, layout and similar arguments don't affect the values.
        kwargs = {name: self._given(value, name in numbers) for name, value in node.kwargs.items() if name not in _PLACEMENT}
        return [self._given(value, place in numbers) for place, value in enumerate(node.args)], kwargs

    def _given(self, value: Any, is_number: bool) -> Any:
        found = self._argument(value)
        return self.builder.number(found) if is_number and isinstance(found, sympy.Expr) else found

    def _argument(self, value: Any) -> Any:
        if isinstance(value, fx.Node):
            return self._values[value]
        if isinstance(value, list | tuple):
            return [self._argument(each) for each in value]
        return value

    def _fallback_subgraph(self, node: fx.Node) -> Any:
        operands = [self._fallback_operand(self._values[each]) for each in node.all_input_nodes]
        values = [value for value, _ in operands] + [size for _, sizes in operands for size in sizes]
        metas = self._meta(node.meta["val"])
        results = metas if isinstance(metas, list) else [metas]
        shapes = {each: value.shape for each in node.all_input_nodes if isinstance(value := self._values[each], Tensor)}
        subgraph = self.fallback_subgraphs.add(node, shapes)
        call = func.CallOp([self.builder.type(m.shape, m.dtype) for m in results], subgraph.name, values)
        tensors = [self.builder.dense_tensor(value, m.shape, m.dtype) for value, m in zip(call.results, results, strict=True)]
        return tensors if isinstance(metas, list) else tensors[0]

    def _fallback_operand(self, value: Any) -> tuple[ir.Value, list[ir.Value]]:
        """Return an operand as a fallback subgraph takes it: a dense tensor and its dynamic sizes, or an int64."""
        if isinstance(value, Tensor):
            dense = self.builder.dense(value)
            return dense.value, self.builder.dynamic(dense.shape)
        if isinstance(value, int | sympy.Expr):
            return arith.index_cast(ir.IntegerType.get_signless(64), self.builder.index(value)), []
        if isinstance(value, SymbolicScalar):
            return value.scalar().value, []
        raise UnsupportedError(f"an operand of kind {type(value).__name__} isn't supported")


_READS_NUMBER = ("aten._local_scalar_dense.default", "aten.item.default")
_PLACEMENT = ("device", "layout", "pin_memory", "dtype", "memory_format", "non_blocking", "copy")


@functools.cache
def _numbers_of(target: Any) -> frozenset[int | str]:
    """Return positions and names of the arguments that an op computes with, as opposed to sizes and indices."""
    arguments = target._schema.arguments if isinstance(target, torch._ops.OpOverload) else []
    chosen = [
        (place, each.name) for place, each in enumerate(arguments) if str(each.type).removeprefix("Optional[").rstrip("]") in _NUMBERS
    ]
    return frozenset(key for pair in chosen for key in pair)


_NUMBERS = ("number", "float", "Tensor", "bool")


def _is_wanted(node: fx.Node) -> bool:
    """Whether an op other than a check uses the value; numbers derived from it are expressions in their own metadata."""
    if isinstance(node.meta.get("val"), torch.SymBool):
        return any(user.op == "output" or _reads(user) for user in node.users)
    return bool(node.users) or bool(node.meta.get("unbacked_bindings"))


def _reads(user: fx.Node) -> bool:
    return op_name(user) not in IGNORED and not _is_number(user) and _is_wanted(user)


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), int | float | torch.SymInt | torch.SymFloat)


def _has_no_elements(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and any(isinstance(size, int) and size == 0 for size in value.shape)


def op_name(node: fx.Node) -> str:
    """Return the overload name, such as "aten.add.Tensor"."""
    return str(node.target)


def place_in_model(node: fx.Node) -> str:
    """Return the text of an op's location: the node, its module and the source line."""
    stack = node.meta.get("nn_module_stack") or {}
    module = next((str(path) for path, _ in reversed(list(stack.values())) if path), "")
    line = source_line(node).strip(" ()").split(": ")[0].rsplit("/", 1)[-1]
    return " ".join(filter(None, (node.name, module, line)))


def source_line(node: fx.Node) -> str:
    """Return the op's position in the model's Python source, such as " (model.py:12: x = x + y)", or ""."""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    places = [i for i, line in enumerate(lines) if line.startswith('File "')]
    if not places:
        return ""
    place = lines[places[-1]].split('"')
    number = place[2].split(",")[1].replace(" line ", "") if "line" in place[2] else "?"
    code = lines[places[-1] + 1] if places[-1] + 1 < len(lines) else ""
    return f" ({place[1]}:{number.strip()}: {code})"
