"""How the products of a contraction are made and added: what kernels ask of an arithmetic, whichever it is.

An arithmetic is a choice of element types, of the instructions that multiply them and of what those want in scratch. Each is one file:

| file | operands | products |
|---|---|---|
| `f32.py` | float32 | fma |
| `bf16_extend.py` | rows of float32, a bfloat16 weight | fma, the weight extended in registers or, a block of k at a time, in scratch |
| `bf16_dot.py` | bfloat16 | VDPBF16PS |
| `amx.py` | bfloat16, or bytes | TDPBF16PS or TDPBUSD on matrix tiles |
| `int8_dot.py` | unsigned by signed bytes | VPDPBUSD |
| `int8_pairs.py` | unsigned by signed bytes | VPMADDWD |
| `int8_extend.py` | unsigned by signed bytes | 32-bit multiplications |
| `weight_only.py` | rows of float32, a weight of 4 or 8 bits with scales | fma, numbers made floats in registers or in scratch |
| `int4_dot.py` | rows of int8, a weight of 4 bits with scales | VPDPBUSD, sums scaled group by group |
| `int4_tiles.py` | the same | TDPBSUD, for 16 rows or more |
| `int4_pairs.py` | the same | VPMADDUBSW |
| `int4_extend.py` | the same | 32-bit multiplications |

`select.py` picks one by element types and target. Kernels hold the loops over rows, columns and blocks of k
(backends/cpu/kernels/contraction_loops.py) and ask the arithmetic for the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from llmos.compiler.analysis.quantized_weights import NumberFormat
from llmos.compiler.backends.cpu.arithmetic.register_tile import Operand, Panel, Strided, TileShape
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.ir.bindings import ir


@dataclass(frozen=True)
class Operands:
    """What an arithmetic is chosen by: element types as they lie in memory, and the number of k, None where it isn't known.

    numbers: how the right side is stored where it is integers with scales, else None.
    """

    left: ir.Type
    right: ir.Type
    k: int | None
    numbers: NumberFormat | None = None


class Prefetch(Enum):
    """What of a packed panel the inner loop requests from memory before it is read."""

    NONE = auto()  # nothing: it lies in L1
    ROWS = auto()  # later rows of the same panel
    NEXT_PANEL = auto()  # full blocks of rows a part of the panel that follows each, smaller blocks later rows as well


@dataclass(frozen=True)
class PanelBlock:
    """A block of k of a panel: `num_k` rows of `width` columns, in vectors of `lanes`. `step`: `num_k` of all blocks but the last."""

    num_k: int
    width: int
    lanes: int
    step: int


class Arithmetic(ABC):
    """Products of a contraction's elements, summed along k. Panels are [k / k_per_word][columns][k_per_word], in words of 32 bits."""

    k_per_word: int  # neighboring k in one word of a panel
    reads_windows = False  # whether rows may be windows of an image, read where they lie (backends/cpu/kernels/implicit_gemm.py)
    prefetch = Prefetch.NONE
    sums_are_exact = False  # integers: chains of any length, and in any order
    thread_rows = 0  # rows that are worth a thread's reading all panels for; 0: as many as caches hold

    @classmethod
    @abstractmethod
    def supports(cls, operands: Operands, target: CpuTarget) -> bool:
        """Whether a target has the instructions for these operands, and gains by them."""

    @property
    @abstractmethod
    def left_type(self) -> ir.Type:
        """Element type of the rows that are multiplied: what lies otherwise in memory is converted to it in scratch."""

    @property
    def accumulator_type(self) -> ir.Type:
        """Element type of the sums, in registers and in scratch; of 32 bits."""
        return ir.F32Type.get()

    def register_tile(self, shape: TileShape, num_registers: int) -> TileShape:
        """Return the register tile for what the arithmetic keeps in registers beside its sums. `shape`: the target's, for sums alone."""
        return shape

    @abstractmethod
    def block_rows(self, shape: TileShape) -> int:
        """Rows that share what is loaded of a panel. `shape`: the target's register tile."""

    def k_block(self, k: int, most: int) -> int:
        """Number of k that all rows are multiplied by before the next; 0: all.

        `most`: how many k of a register tile's columns stay in L1; 0: any number.
        """
        return 0

    def scratch_bytes(self, k: int, width: int, k_block: int) -> int:
        """Return the bytes of scratch beside rows and sums, where panels of `width` columns lie packed in memory."""
        return 0

    def prepared_row_bytes(self, k: int) -> int:
        """Return the bytes from a row to the next in scratch, where `prepare_row` writes them; 0: rows are multiplied as they lie."""
        return 0

    def prepare_row(self, b: Builder, source: Value, target: Value) -> None:
        """Emit the copy of a row of `left_type`, dense along k, into the form in which it is multiplied."""
        raise NotImplementedError


class RegisterArithmetic(Arithmetic):
    """An arithmetic whose accumulators are vector registers."""

    def block_rows(self, shape: TileShape) -> int:
        """Return the rows of the register tile."""
        return shape.rows

    def load_rows(self, b: Builder, a: Operand, num_rows: int, k: Value, scratch: Callable[[], Value]) -> Operand:
        """Emit what makes a block of rows readable by `accumulate`. Returns where they then lie.

        k: how many, i64. `scratch`: emits the address of `scratch_bytes`.
        """
        return a

    def load_block(self, b: Builder, base: Value, k: Value, block: PanelBlock, scratch: Callable[[], Value]) -> Value:
        """Emit what makes a block of the panel at `base`, from row `k` on, readable by `accumulate`. Returns where it then lies.

        `scratch`: emits the address of `scratch_bytes`.
        """
        return b.address(base, b.mul(k, b.index(block.width // self.k_per_word)), b.f32)

    @abstractmethod
    def accumulate(self, b: Builder, shape: TileShape, a: Operand, panel: Panel, k: Value, start: Sequence[Value]) -> list[Value]:
        """Emit the loop over k of one register tile. Returns `start` + A[rows, k] * B[k, columns].

        `a`: rows of `left_type`; `k`: how many, i64; `start`: shape.rows * shape.vectors accumulators, row by row.
        """


class MatrixArithmetic(Arithmetic):
    """An arithmetic whose accumulators are matrix registers, filled from memory and stored there."""

    prefetch = Prefetch.NEXT_PANEL
    tile_rows: int  # of a matrix register
    row_tiles: tuple[int, ...]  # how many tiles of rows a block has, most first, at last 1
    words_per_step: int  # rows of words of a panel that one instruction reads

    def block_rows(self, shape: TileShape) -> int:
        """Return the rows of the largest block of matrix registers."""
        return self.row_tiles[0] * self.tile_rows

    @abstractmethod
    def copy_rows(self, b: Builder, a: Strided, count: Value, k: int, target: Value) -> Strided:
        """Emit the copy of `count` rows of k elements to `target`, so that `tile_rows` may be read there, whatever those behind hold."""

    @abstractmethod
    def multiply(self, b: Builder, a: Sequence[Strided], panel: Panel, columns: int, k: int, out: Value, out_stride: int) -> None:
        """Emit out[tile_rows * len(a), columns] = A * B. `a`: `tile_rows` rows each; `out_stride`: elements between rows of `out`."""
