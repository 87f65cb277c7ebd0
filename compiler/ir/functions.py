"""Typed views of functions: the entry with its inputs, weights and outputs, and dispatches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from llmos.compiler.ir.attributes import (
    DISPATCH,
    DTYPE,
    IN_PLACE,
    INPUT,
    KIND,
    LABEL,
    NAME,
    OUTER,
    PACKED,
    PREFIX,
    SHAPE,
    SLOTS,
    STATE,
    UPDATES,
    WEIGHT,
    WINOGRAD,
    PackedLayout,
    append_argument_attributes,
    argument_attributes,
    callers_shape,
    integer_of,
    read_shape,
    result_attributes,
    set_argument_attributes,
    text_of,
    type_of,
)
from llmos.compiler.ir.bindings import ir

_VISIBILITY = "sym_visibility"


def is_public(op: ir.Operation) -> bool:
    """Whether an op is a public function, an entry."""
    return bool(op.operation.name == "func.func" and _VISIBILITY not in op.attributes)


def is_dispatch(op: ir.Operation) -> bool:
    """Whether an op is the function of a dispatch."""
    return DISPATCH in op.attributes


def functions_of(module: ir.Module) -> dict[str, ir.Operation]:
    """Return every function of a module by its name, in the module's order."""
    return {name_of(op.operation): op.operation for op in module.body.operations if op.operation.name == "func.func"}


def public_functions(module: ir.Module) -> list[ir.Operation]:
    """Return the entries of a module, in its order."""
    return [op.operation for op in module.body.operations if is_public(op.operation)]


def dispatch_functions(module: ir.Module) -> list[ir.Operation]:
    """Return the dispatches of a module, in its order."""
    return [op.operation for op in module.body.operations if is_dispatch(op.operation)]


def create_private(
    module: ir.Module, name: str, kind: ir.FunctionType, arguments: Iterable[ir.DictAttr], attributes: Mapping[str, ir.Attribute]
) -> ir.Operation:
    """Append a private function whose block has arguments and no ops yet. arguments: what each carries; attributes: of the function."""
    with ir.InsertionPoint(module.body):
        func = ir.Operation.create(
            "func.func",
            regions=1,
            attributes={
                "sym_name": ir.StringAttr.get(name),
                "function_type": ir.TypeAttr.get(kind),
                "arg_attrs": ir.ArrayAttr.get(list(arguments)),
                **attributes,
            },
        )
    func.regions[0].blocks.append(*kind.inputs)
    make_private(func)
    return func


def make_private(func: ir.Operation) -> None:
    """Make a function private: no entry of the module."""
    func.attributes[_VISIBILITY] = ir.StringAttr.get("private")


def make_public(func: ir.Operation) -> None:
    """Make a function public: an entry of the module."""
    if _VISIBILITY in func.attributes:
        del func.attributes[_VISIBILITY]


def name_of(func: ir.Operation) -> str:
    """Return the name of a function, without the @."""
    return str(ir.StringAttr(func.attributes["sym_name"]).value)


def callee_of(call: ir.Operation) -> str:
    """Return the name of the function that a func.call calls, without the @."""
    return str(ir.FlatSymbolRefAttr(call.attributes["callee"]).value)


@dataclass(frozen=True)
class Argument:
    """One argument of a function. What an attribute doesn't say is "" or None."""

    value: ir.Value
    attributes: Mapping[str, ir.Attribute]

    @property
    def position(self) -> int:
        """Return the number of the argument, from 0."""
        return int(ir.BlockArgument(self.value).arg_number)

    @property
    def kind(self) -> str:
        """Return KIND: INPUT or WEIGHT for an argument of an entry, else "" as for dispatches."""
        return text_of(self.attributes, KIND)

    @property
    def is_input(self) -> bool:
        """Whether callers pass it."""
        return self.kind == INPUT

    @property
    def is_weight(self) -> bool:
        """Whether the artifact holds its value."""
        return self.kind == WEIGHT

    @property
    def name(self) -> str:
        """Return the name of an input or a weight."""
        return text_of(self.attributes, NAME)

    @property
    def dtype(self) -> str:
        """Return the manifest's name of the dtype, which keeps the sign and complex numbers that the MLIR type lacks."""
        return text_of(self.attributes, DTYPE)

    @property
    def shape(self) -> list[str | int]:
        """Return the dims of an input, one entry each as `read_shape`; of complex numbers the pairs' dim of size 2 included."""
        return read_shape(self.attributes[SHAPE])

    @property
    def callers_shape(self) -> tuple[str | int, ...]:
        """The dims of an input as a caller sees them."""
        return callers_shape(self.dtype, self.shape)

    @property
    def state(self) -> str:
        """Of an input that is a state: the weight that it starts with."""
        return text_of(self.attributes, STATE)

    @property
    def packed(self) -> PackedLayout | None:
        """Return the layout of a packed weight; None where it lies row-major."""
        return PackedLayout.read(self.attributes[PACKED]) if PACKED in self.attributes else None


@dataclass(frozen=True)
class Result:
    """One result of an entry."""

    number: int
    value: ir.Value
    attributes: Mapping[str, ir.Attribute]

    @property
    def name(self) -> str:
        """Return the name of an output, or of a new value of an input."""
        return text_of(self.attributes, NAME)

    @property
    def dtype(self) -> str:
        """Return the manifest's name of the dtype."""
        return text_of(self.attributes, DTYPE)

    @property
    def updates(self) -> str:
        """Return the name of the input whose new value it is; "" for an output."""
        return text_of(self.attributes, UPDATES)


@dataclass(frozen=True)
class Arguments:
    """The arguments of a function, in order."""

    all: tuple[Argument, ...]

    def __iter__(self) -> Iterator[Argument]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def __getitem__(self, position: int) -> Argument:
        return self.all[position]

    @property
    def inputs(self) -> list[Argument]:
        """Return the inputs, in order."""
        return [each for each in self.all if each.is_input]

    @property
    def weights(self) -> list[Argument]:
        """Return the weights, in order."""
        return [each for each in self.all if each.is_weight]

    def of(self, value: ir.Value) -> Argument | None:
        """The argument that a value is; None for any other value."""
        return next((each for each in self.all if each.value == value), None)


@dataclass(frozen=True)
class Func:
    """A function as it is now: nothing is kept, so passes may change it between two reads."""

    op: ir.Operation

    @property
    def name(self) -> str:
        """Return the function's name, without the @."""
        return name_of(self.op)

    @property
    def block(self) -> ir.Block:
        """Return the body, one block."""
        return self.op.regions[0].blocks[0]

    @property
    def ops(self) -> list[ir.Operation]:
        """Return the ops of the body, in order; the last one is the return."""
        return [op.operation for op in self.block.operations]

    @property
    def returned(self) -> list[ir.Value]:
        """Return the values that the function returns."""
        return list(self.ops[-1].operands)

    @property
    def arguments(self) -> Arguments:
        """Return the arguments with their attributes."""
        return Arguments(tuple(map(Argument, self.block.arguments, argument_attributes(self.op))))

    def add_argument(self, kind: ir.Type, attributes: Mapping[str, ir.Attribute]) -> ir.Value:
        """Append an argument of type `kind` and return its value; the function's type follows, calls of it don't."""
        added = self.block.add_argument(kind, ir.Location.unknown())
        self.update_type()
        append_argument_attributes(self.op, attributes)
        return added

    def drop_arguments(self, positions: Iterable[int]) -> None:
        """Remove arguments, by position, that nothing uses; the function's type follows, calls of it don't."""
        before, gone = argument_attributes(self.op), set(positions)
        for position in sorted(gone, reverse=True):
            self.block.erase_argument(position)
        self.update_type()
        set_argument_attributes(self.op, [each for position, each in enumerate(before) if position not in gone])

    def mark_argument(self, position: int, **marks: ir.Attribute) -> None:
        """Add attributes to an argument, by their names without the prefix `llmos.`."""
        attributes = argument_attributes(self.op)
        attributes[position].update({f"{PREFIX}{key}": value for key, value in marks.items()})
        set_argument_attributes(self.op, attributes)

    def update_type(self) -> None:
        """Set the function's type from the types of its block's arguments; the results' types stay."""
        results = type_of(self.op).results
        self.op.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([a.type for a in self.block.arguments], results))


@dataclass(frozen=True)
class EntryFunc(Func):
    """A public function."""

    @classmethod
    def of(cls, module: ir.Module) -> EntryFunc:
        """Return the first entry of a module. Raises IndexError for a module without one."""
        return cls(public_functions(module)[0])

    @property
    def results(self) -> list[Result]:
        """Return the results with their attributes, in order."""
        named = zip(self.returned, result_attributes(self.op), strict=True)
        return [Result(number, value, attributes) for number, (value, attributes) in enumerate(named)]

    @property
    def outputs(self) -> list[Result]:
        """Return the results that callers see: those that aren't new values of inputs."""
        return [each for each in self.results if not each.updates]

    @property
    def updated(self) -> dict[int, int]:
        """Map the number of each result that is a new value to the position of the argument that it updates."""
        positions = {each.name: each.position for each in reversed(self.arguments.inputs)}
        return {each.number: positions[each.updates] for each in self.results if each.updates}

    @property
    def slots(self) -> list[str]:
        """Return the sizes of the arena's slots in bytes, as texts over the symbols. Only plan-memory sets them."""
        return [str(ir.StringAttr(size).value) for size in ir.ArrayAttr(self.op.attributes[SLOTS])]


@dataclass(frozen=True)
class DispatchFunc(Func):
    """The function of a dispatch."""

    @property
    def kind(self) -> str:
        """Return the kind of kernel, such as "contraction" or "row"."""
        return text_of(self.op.attributes, DISPATCH)

    @property
    def label(self) -> str:
        """Return what it computes, in the field's words; "" until label-dispatches has run."""
        return text_of(self.op.attributes, LABEL)

    @property
    def winograd_tile(self) -> int | None:
        """Outputs on a side of a tile of a winograd dispatch; None of any other."""
        return integer_of(self.op, WINOGRAD)

    @property
    def num_outer(self) -> int | None:
        """Return, of a row dispatch, the number of loop dims before the reduced ones; None of any other."""
        return integer_of(self.op, OUTER)

    @property
    def in_place(self) -> int | None:
        """Return the number of the tensor operand whose memory its one result takes; None where it takes none."""
        return integer_of(self.op, IN_PLACE)
