"""Registry of ONNX ops as torch functions: `@op` registers a plain function, whose signature declares its inputs.

Positional parameters are the node's inputs and keyword-only ones its attributes, by ONNX's names; a default makes one optional.
The annotation of an input declares its form:

    torch.Tensor  a tensor            Ints    a tuple of ints and SymInts (a compile-time value)
    Sizes         as Ints, but a runtime value is read from data and determines sizes
    Operand       a tensor, or a      Floats  a tuple of floats, a compile-time value
                  Python number       Array   a constant value     Value   any form
    AnyTensor     a tensor, of a low-precision type too (low_precision.py)
    Numbers       a tuple of Python numbers of the input's type, a compile-time value
    Known         a constant value or None; the function itself reports anything else

A node with an attribute that the function doesn't take is rejected, because ignoring it would give wrong results.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar

import torch

from llmos.compiler.frontend.onnx.low_precision import LowPrecisionTensor
from llmos.compiler.frontend.onnx.values import ConstantValue
from llmos.compiler.frontend.onnx.values import Value as AnyValue


class Kind(enum.Enum):
    """The form in which a function takes an input."""

    TENSOR = "tensor"
    OPERAND = "operand"
    INTS = "ints"
    SIZES = "sizes"
    FLOATS = "floats"
    NUMBERS = "numbers"
    ARRAY = "array"
    ANY_TENSOR = "any_tensor"
    VALUE = "value"
    KNOWN = "known"
    NUM_OUTPUTS = "num_outputs"
    SUBGRAPH = "subgraph"


Operand = Annotated[Any, Kind.OPERAND]
Ints = Annotated[tuple[Any, ...], Kind.INTS]
Sizes = Annotated[tuple[Any, ...], Kind.SIZES]
Floats = Annotated[tuple[float, ...], Kind.FLOATS]
Numbers = Annotated[tuple[Any, ...], Kind.NUMBERS]
Array = Annotated[ConstantValue, Kind.ARRAY]
AnyTensor = Annotated["torch.Tensor | LowPrecisionTensor", Kind.ANY_TENSOR]
Value = Annotated[AnyValue, Kind.VALUE]
Known = Annotated[AnyValue, Kind.KNOWN]
NumOutputs = Annotated[int, Kind.NUM_OUTPUTS]
Subgraph = Annotated[Callable[..., list[AnyValue]], Kind.SUBGRAPH]


@dataclass(frozen=True)
class OpKey:
    """One registration: an op of a domain from an opset version on."""

    name: str
    since: int = 1
    domain: str = ""
    on_host: bool = False


@dataclass(frozen=True)
class OpFunction:
    """A torch (or, `on_host`, numpy) function for an op, with its parsed signature."""

    key: OpKey
    call: Callable[..., Any]
    inputs: tuple[Kind, ...]
    num_required: int
    variadic: Kind | None
    attributes: frozenset[str]
    required_attributes: frozenset[str]
    wants_num_outputs: bool

    def kind_of(self, index: int) -> Kind | None:
        """Return the form of the input at `index`, or None if there is no such input."""
        if index < len(self.inputs):
            return self.inputs[index]
        return self.variadic


F = TypeVar("F", bound=Callable[..., Any])


def op(*names: str, since: int = 1, domain: str = "", on_host: bool = False) -> Callable[[F], F]:
    """Register a function for ONNX ops from opset version `since` on. `on_host`: used if no input is a tensor."""

    def tag(function: F) -> F:
        keys = getattr(function, "onnx_keys", ())
        function.onnx_keys = keys + tuple(OpKey(name, since, domain, on_host) for name in names)  # type: ignore[attr-defined]
        return function

    return tag


def unary(name: str, call: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Register an op of one tensor without attributes that equals a torch function."""

    @op(name)
    def function(x: torch.Tensor) -> torch.Tensor:
        return call(x)

    return function


def find(name: str, version: int, domain: str = "", on_host: bool = False) -> OpFunction | None:
    """Return the function for an op in a model that imports `version` of `domain`, or None."""
    candidates = [f for f in _registry().get((name, domain, on_host), ()) if f.key.since <= version]
    return max(candidates, key=lambda f: f.key.since, default=None)


def supported_ops() -> frozenset[str]:
    """Return the names of the ai.onnx ops that have a torch function."""
    return frozenset(name for name, domain, on_host in _registry() if domain == "" and not on_host)


@cache
def _registry() -> Mapping[tuple[str, str, bool], tuple[OpFunction, ...]]:
    from llmos.compiler.frontend.onnx import ops

    found: dict[tuple[str, str, bool], tuple[OpFunction, ...]] = {}
    for info in pkgutil.iter_modules(ops.__path__):
        module = importlib.import_module(f"{ops.__name__}.{info.name}")
        for function in _functions(vars(module).values()):
            for key in function.onnx_keys:
                place = (key.name, key.domain, key.on_host)
                described = _describe(key, function)
                if described not in found.get(place, ()):
                    found[place] = (*found.get(place, ()), described)
    return found


def _functions(values: Any) -> list[Any]:
    """Return the registered functions among a module's globals and in its tuples (tables of simple ops)."""
    functions: list[Any] = []
    for value in values:
        if isinstance(value, tuple):
            functions += [item for item in value if hasattr(item, "onnx_keys")]
        elif hasattr(value, "onnx_keys"):
            functions.append(value)
    return functions


def _describe(key: OpKey, function: Callable[..., Any]) -> OpFunction:
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    keyword = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    variadic = next((_kind(hints[p.name]) for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    attributes = {p.name for p in keyword if _kind(hints[p.name]) is not Kind.NUM_OUTPUTS}
    return OpFunction(
        key=key,
        call=function,
        inputs=tuple(_kind(hints[p.name]) for p in positional),
        num_required=sum(p.default is p.empty for p in positional),
        variadic=variadic,
        attributes=frozenset(attributes),
        required_attributes=frozenset(p.name for p in keyword if p.default is p.empty and p.name in attributes),
        wants_num_outputs=len(attributes) != len(keyword),
    )


def _kind(hint: Any) -> Kind:
    for item in (hint, *typing.get_args(hint)):
        for extra in getattr(item, "__metadata__", ()):
            if isinstance(extra, Kind):
                return extra
    return Kind.TENSOR
