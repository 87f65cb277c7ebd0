"""Products of int8 rows by weights of 4 bits on the matrix tiles of AMX (TDPBSUD): 16 rows by 16 columns, for many rows.

A run's sums are made in a matrix register, stored to scratch, and scaled from there in vector registers. What is unpacked to scratch and
the rows beside it, both with even k before odd ones in each eight, lie as the instruction reads them. Fewer than 16 rows are multiplied by
VPDPBUSD from the same block.
"""

from __future__ import annotations

from collections.abc import Sequence

from llmos.compiler.backends.cpu.arithmetic.amx import TILE_COLUMNS, TILE_ROWS, TileProduct, dot_tiles
from llmos.compiler.backends.cpu.arithmetic.base import Operands
from llmos.compiler.backends.cpu.arithmetic.grouped import NumberPanel, over_runs
from llmos.compiler.backends.cpu.arithmetic.int4 import K_PER_WORD
from llmos.compiler.backends.cpu.arithmetic.int4_dot import Int4Dot
from llmos.compiler.backends.cpu.arithmetic.register_tile import CACHE_LINE, Strided, TileShape
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value

INT4 = TileProduct("tdpbsud", 1)  # rows have signs, numbers have none


class Int4Tiles(Int4Dot):
    """Runs of whole matrix registers; a block in scratch has room for the sums of one behind it."""

    @classmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Return whether runs and k are multiples of 64, beside what `Int4` asks for."""
        if operands.numbers is None or operands.k is None or not super().supports(operands, target):
            return False
        return operands.numbers.run % INT4.depth == 0 and operands.k % INT4.depth == 0

    @classmethod
    def has_instructions(cls, target: CpuTarget) -> bool:
        """Return whether the target has AMX for bytes, and VPDPBUSD."""
        return target.has("amx-int8") and super().has_instructions(target)

    def register_tile(self, shape: TileShape, num_registers: int) -> TileShape:
        """Return a matrix register's rows by one vector: its totals fill half of the vector registers."""
        return TileShape(TILE_ROWS, 1, TILE_COLUMNS)

    def scratch_rows(self, k_block: int) -> int:
        """Return the rows of a block in scratch, and of a matrix register."""
        return super().scratch_rows(k_block) + TILE_ROWS

    def accumulate_block(
        self, b: Builder, shape: TileShape, a: Strided, panel: NumberPanel, part: Value, k: Value, num_k: int, start: Sequence[Value]
    ) -> list[Value]:
        """Emit `start` plus the products of `num_k` k from `k` on. part: of the block in scratch, the columns of the tile."""
        if shape.rows != TILE_ROWS:
            return super().accumulate_block(b, shape, a, panel, part, k, num_k, start)
        run, first = self.format.run, b.div(k, b.index(self.format.run))
        room = b.address(part, b.index(super().scratch_rows(self.k_block(self.k, 0)) * shape.columns), b.i32)
        rows = [b.address(a.base, b.mul(b.index(r), a.row_stride), b.i8) for r in range(shape.rows)]

        def add(number: Value, count: int, totals: Sequence[Value]) -> list[Value]:
            place = b.add(first, number)
            left = Strided(b.address(a.base, b.mul(place, b.index(run)), b.i8), a.row_stride, b.index(1))
            right = b.address(part, b.mul(number, b.index(run // K_PER_WORD * shape.columns)), b.i32)
            dot_tiles(b, left, right, count, room, INT4)
            sums = [
                b.binary(
                    "arith.addi", each, b.load(b.address(room, b.index(r * shape.columns), b.i32), b.vec(b.i32, shape.lanes), CACHE_LINE)
                )
                for r, each in enumerate(self._starts(b, shape, rows, panel, place))
            ]
            return self.scaled(b, shape, panel, place, self._floats(b, sums), totals)

        return over_runs(b, num_k, run, start, add)
