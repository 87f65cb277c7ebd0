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
    """Whether an op is a function that is an entry."""
    return bool(op.operation.name == "func.func" and _VISIBILITY not in op.attributes)


def is_dispatch(op: ir.Operation) -> bool:
    """Whether an op is the function of a dispatch."""
    return DISPATCH in op.attributes


def functions_of(module: ir.Module) -> dict[str, ir.Operation]:
    """Every function of a module by its name, in the module's order."""
    return {name_of(op.operation): op.operation for op in module.body.operations if op.operation.name == "func.func"}


def public_functions(module: ir.Module) -> list[ir.Operation]:
    """The entries of a module."""
    return [op.operation for op in module.body.operations if is_public(op.operation)]


def dispatch_functions(module: ir.Module) -> list[ir.Operation]:
    """The dispatches of a module, in its order."""
    return [op.operation for op in module.body.operations if is_dispatch(op.operation)]


def create_private(
    module: ir.Module, name: str, kind: ir.FunctionType, arguments: Iterable[ir.DictAttr], attributes: Mapping[str, ir.Attribute]
) -> ir.Operation:
    """Append a private function whose block is still empty. arguments: what each carries."""
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
    func.attributes[_VISIBILITY] = ir.StringAttr.get("private")


def make_public(func: ir.Operation) -> None:
    if _VISIBILITY in func.attributes:
        del func.attributes[_VISIBILITY]


def name_of(func: ir.Operation) -> str:
    return str(ir.StringAttr(func.attributes["sym_name"]).value)


def callee_of(call: ir.Operation) -> str:
    """The name of the function that a func.call calls."""
    return str(ir.FlatSymbolRefAttr(call.attributes["callee"]).value)


@dataclass(frozen=True)
class Argument:
    """One argument of a function. What an attribute doesn't say is "" or None."""

    value: ir.Value
    attributes: Mapping[str, ir.Attribute]

    @property
    def position(self) -> int:
        return int(ir.BlockArgument(self.value).arg_number)

    @property
    def kind(self) -> str:
        return text_of(self.attributes, KIND)

    @property
    def is_input(self) -> bool:
        return self.kind == INPUT

    @property
    def is_weight(self) -> bool:
        return self.kind == WEIGHT

    @property
    def name(self) -> str:
        return text_of(self.attributes, NAME)

    @property
    def dtype(self) -> str:
        return text_of(self.attributes, DTYPE)

    @property
    def shape(self) -> list[str | int]:
        """The dims of an input, those of pairs that stand for complex numbers included."""
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
        return PackedLayout.read(self.attributes[PACKED]) if PACKED in self.attributes else None


@dataclass(frozen=True)
class Result:
    """One result of an entry."""

    number: int
    value: ir.Value
    attributes: Mapping[str, ir.Attribute]

    @property
    def name(self) -> str:
        return text_of(self.attributes, NAME)

    @property
    def dtype(self) -> str:
        return text_of(self.attributes, DTYPE)

    @property
    def updates(self) -> str:
        """The name of the input whose new value it is."""
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
        return [each for each in self.all if each.is_input]

    @property
    def weights(self) -> list[Argument]:
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
        return name_of(self.op)

    @property
    def block(self) -> ir.Block:
        return self.op.regions[0].blocks[0]

    @property
    def ops(self) -> list[ir.Operation]:
        return [op.operation for op in self.block.operations]

    @property
    def returned(self) -> list[ir.Value]:
        return list(self.ops[-1].operands)

    @property
    def arguments(self) -> Arguments:
        return Arguments(tuple(map(Argument, self.block.arguments, argument_attributes(self.op))))

    def add_argument(self, kind: ir.Type, attributes: Mapping[str, ir.Attribute]) -> ir.Value:
        """Append an argument."""
        before = argument_attributes(self.op)
        added = self.block.add_argument(kind, ir.Location.unknown())
        self.update_type()
        set_argument_attributes(self.op, [*before, attributes])
        return added

    def drop_arguments(self, positions: Iterable[int]) -> None:
        """Remove arguments that nothing uses."""
        before, gone = argument_attributes(self.op), set(positions)
        for position in sorted(gone, reverse=True):
            self.block.erase_argument(position)
        self.update_type()
        set_argument_attributes(self.op, [each for position, each in enumerate(before) if position not in gone])

    def mark_argument(self, position: int, **marks: ir.Attribute) -> None:
        """Give an argument attributes, by their names without prefix."""
        attributes = argument_attributes(self.op)
        attributes[position].update({f"{PREFIX}{key}": value for key, value in marks.items()})
        set_argument_attributes(self.op, attributes)

    def update_type(self) -> None:
        """Make the function's type say what types its arguments have."""
        results = type_of(self.op).results
        self.op.attributes["function_type"] = ir.TypeAttr.get(ir.FunctionType.get([a.type for a in self.block.arguments], results))


@dataclass(frozen=True)
class EntryFunc(Func):
    """A public function."""

    @classmethod
    def of(cls, module: ir.Module) -> EntryFunc:
        """The entry of a module that has one."""
        return cls(public_functions(module)[0])

    @property
    def results(self) -> list[Result]:
        named = zip(self.returned, result_attributes(self.op), strict=True)
        return [Result(number, value, attributes) for number, (value, attributes) in enumerate(named)]

    @property
    def outputs(self) -> list[Result]:
        """The results that callers see: those that aren't new values of inputs."""
        return [each for each in self.results if not each.updates]

    @property
    def updated(self) -> dict[int, int]:
        """By number of the result that is its new value: the position of each argument that is updated."""
        positions = {each.name: each.position for each in reversed(self.arguments.inputs)}
        return {each.number: positions[each.updates] for each in self.results if each.updates}

    @property
    def slots(self) -> list[str]:
        """The sizes of the arena's slots, once plan-memory has run."""
        return [str(ir.StringAttr(size).value) for size in ir.ArrayAttr(self.op.attributes[SLOTS])]


@dataclass(frozen=True)
class DispatchFunc(Func):
    """The function of a dispatch."""

    @property
    def kind(self) -> str:
        return text_of(self.op.attributes, DISPATCH)

    @property
    def label(self) -> str:
        """What it computes, in the field's words; "" until label-dispatches has run."""
        return text_of(self.op.attributes, LABEL)

    @property
    def winograd_tile(self) -> int | None:
        """Outputs on a side of a tile of a winograd dispatch; None of any other."""
        return integer_of(self.op, WINOGRAD)

    @property
    def num_outer(self) -> int | None:
        """Of a row dispatch: loop dims before the reduced ones."""
        return integer_of(self.op, OUTER)

    @property
    def in_place(self) -> int | None:
        """The tensor operand whose memory its one result takes."""
        return integer_of(self.op, IN_PLACE)
