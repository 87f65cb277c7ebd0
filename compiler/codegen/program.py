"""The entry of a planned module, read back: its dispatches and loops, in the order of the host function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmos.compiler.analysis.loops import Loop, is_loop
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.ir.attributes import INDUCTION_VARIABLE, text_of
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import EntryFunc, callee_of, functions_of
from llmos.compiler.ir.shapes import Shapes
from llmos.compiler.ir.sizes import SymbolTable


@dataclass(frozen=True)
class LoopUnit:
    """A loop of the host function, and the dispatches of its body, in order."""

    loop: Loop
    dispatches: Sequence[Dispatch]

    @property
    def induction_variable(self) -> str:
        """Return the name of the loop's symbol."""
        return text_of(self.loop.op.attributes, INDUCTION_VARIABLE)

    @property
    def name(self) -> str:
        """Return the name of the loop's kernel."""
        return f"{self.induction_variable}_loop"


@dataclass
class Program:
    """The dispatches of a planned module.

    weights: the places of its weights in the table of an artifact of several entries; empty where it has the table for itself.
    first_kernel: the number of its first unit in the manifest.
    """

    module: ir.Module
    table: SymbolTable
    main: ir.Operation
    units: list[Dispatch | LoopUnit] = field(default_factory=list)  # in the order of the host function
    weights: tuple[int, ...] = ()
    first_kernel: int = 0

    @classmethod
    def of(cls, module: ir.Module) -> Program:
        """Read the entry of a planned module."""
        table = SymbolTable.of(module)
        functions = functions_of(module)
        main = EntryFunc.of(module).op
        shapes = Shapes.of(main, table)

        def called(op: ir.Operation) -> Dispatch:
            return Dispatch(functions[callee_of(op)], table)

        units: list[Dispatch | LoopUnit] = []
        for op in main.regions[0].blocks[0].operations:
            if op.operation.name == "func.call":
                units.append(called(op.operation))
            elif is_loop(op.operation):
                loop = Loop(op.operation, shapes)
                units.append(LoopUnit(loop, [called(call) for call in loop.calls]))
        return cls(module, table, main, units)

    @property
    def dispatches(self) -> list[Dispatch]:
        """Return every dispatch, those in loops included."""
        return [each for unit in self.units for each in (unit.dispatches if isinstance(unit, LoopUnit) else [unit])]

    @property
    def loops(self) -> list[LoopUnit]:
        """Return the loops of the host function."""
        return [unit for unit in self.units if isinstance(unit, LoopUnit)]


def identity(dispatch: Dispatch) -> str:
    """Return a dispatch's text without its name: equal for dispatches that one kernel serves.

    In the scope of the function: to print it as a part of its module, MLIR would number all of that each time.
    """
    return str(dispatch.func.get_asm(use_local_scope=True)).replace(f"@{dispatch.name}(", "@_(", 1)
