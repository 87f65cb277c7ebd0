"""Attention whose products are those of bfloat16: Q, K and V in bfloat16, scores and softmax in float32, weights rounded to bfloat16.

Scores stay transposed as in backends/cpu/kernels/attention.py, whose softmax this is: S^T = K Q^T, where K is a left side as it lies and
Q^T the pairs along d that the instructions want, which is Q transposed word by word. O^T = V^T P^T, where two neighboring rows of P^T make
the pairs along j. V^T is made of V, for a block of keys: two rows are interleaved to words of (j, j + 1), and words transposed; so even
columns come in one block and odd ones in another, and O^T has its rows in that order until it is written. The matrix tiles of AMX multiply
whole blocks of keys, dot products (VDPBF16PS) those that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import sympy

from llmos.compiler.analysis.casts import extended, is_extended_argument
from llmos.compiler.analysis.contraction import Contraction
from llmos.compiler.analysis.generic import dim_positions
from llmos.compiler.backends.cpu.arithmetic.amx import BF16, BLOCK_TILES, TILE_ROWS, has_matrix_tiles, multiply_tiles
from llmos.compiler.backends.cpu.arithmetic.bf16_dot import dot_pairs, has_dot_products
from llmos.compiler.backends.cpu.arithmetic.register_tile import (
    Panel,
    Strided,
    TileShape,
    for_row_blocks,
    load_tile,
    register_tile,
    row_tiles,
    store_tile,
    zeros,
)
from llmos.compiler.backends.cpu.kernels.attention import BLOCK, AttentionEmitter, AttentionPlan, QueryBlock
from llmos.compiler.backends.cpu.kernels.transpose import transpose
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.builder import Builder, Value
from llmos.compiler.codegen.coordinates import Coord
from llmos.compiler.codegen.dispatch import Dispatch
from llmos.compiler.codegen.kernel import Launch, kernel
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.sizes import Expr

WORDS = 16  # pairs of bfloat16 in a vector, and rows that are transposed at once
LOW_HALF, HIGH_HALF = 0xFFFF, -(1 << 16)


class PairedAttentionPlan(AttentionPlan):
    """An attention dispatch whose products may be those of bfloat16."""

    @property
    def fits(self) -> bool:
        """Return whether Q, K and V are bfloat16 in memory, dense along the head, whose width is a known multiple of 32."""
        scores, values, parts = self.parts.scores, self.parts.values, self.parts
        operands = [(scores, parts.query, scores.k), (scores, 1 - parts.query, scores.k), (values, 1 - parts.weights, self.value_dims)]
        known = all(size.is_Integer and int(size) % BF16.depth == 0 for size in (self.depth, self.width))
        return known and all(self._is_dense(*operand) for operand in operands)

    def _is_dense(self, contraction: Contraction, operand: int, dims: tuple[int, ...]) -> bool:
        generic = contraction.generic
        sizes = generic.loop_sizes(self.dispatch.shapes)
        real = [dim for dim in dims if sizes[dim] != 1]
        return is_extended_argument(generic.inputs[operand]) and dim_positions(generic.maps[operand])[-1:] == real

    def scratch(self) -> dict[str, Expr]:
        """Return the sizes of the parts of a tile's scratch, in words of 32 bits; bfloat16 lies by pairs."""
        rows = self.block_rows
        return {
            "query": self.depth / 2 * rows,  # [d / 2][i][2]
            "scores": sympy.Integer(BLOCK * rows),  # [j][i]
            "weights": sympy.Integer(BLOCK // 2 * rows),  # [j / 2][i][2]
            "keys": BLOCK * self.depth / 2,  # [j][d]
            "values": BLOCK * self.width / 2,  # [d][j], even d before odd ones within 32
            "output": self.width * rows,  # [d][i], in the same order
            "rows": self.width * rows,  # [i][d]
            "max": sympy.Integer(rows),
            "sum": sympy.Integer(rows),
            "scale": sympy.Integer(rows),
        }


class PairedAttentionEmitter(AttentionEmitter):
    """Emits one block of queries of a plan that `fits`."""

    def _multiplied_keys(self, count: Value) -> Value:
        """Return how many keys of a block of `count` are multiplied; behind the last one weights and values are 0."""
        raise NotImplementedError

    def _multiply(self, left: str, rows: Value, k: Value, row_length: int, right: str, out: str, onto: bool = False) -> None:
        """Emit out[rows][i] = left[rows][k] times right[k / 2][i][2], all in scratch. row_length: of `left`, in elements.

        onto: what `out` holds is added to.
        """
        raise NotImplementedError

    def _words(self, name: str, offset: Value) -> Value:
        return self.frame.b.address(self._at(name), offset, self.frame.b.i32)

    # -- what is read
    def _row(self, contraction: Contraction, operand: int, point: list[Coord]) -> Value:
        """Address of an element of Q, K or V."""
        b, ev, generic = self.frame.b, self.frame.emitter, contraction.generic
        buffer = ev.buffers[extended(generic.inputs[operand])]
        return b.address(buffer.pointer, ev.memory.locate(buffer, ev.index.apply(generic.maps[operand], point)), buffer.kind)

    def _load(self, address: Value) -> Value:
        return self.frame.b.load(address, self.frame.b.vec(self.frame.b.i32, WORDS), 2)

    def _key(self, first: Value, j: Value) -> Value:
        """Number of a key of the block; the last key's behind the end, where nothing may be read."""
        b = self.frame.b
        return b.minimum(b.add(first, j), b.sub(self.frame.emitter.sizes(self.plan.num_keys), b.index(1)))

    def _groups(self, size: Expr, body: Callable[[Value], None]) -> None:
        """body(first element) for each 32 of a head."""
        b, ev = self.frame.b, self.frame.emitter
        with b.loop(b.index(0), ev.sizes(size), b.index(BF16.depth)) as loop, ev.scope():
            body(loop.iv)

    def _load_queries(self) -> None:
        """Q^T of the block, by pairs: 16 queries by 16 pairs at a time."""
        b, ev, rows = self.frame.b, self.frame.emitter, self.plan.block_rows
        last = b.sub(ev.sizes(self.plan.num_queries), b.index(1))

        def transpose_block(d: Value) -> None:
            for v in self._vectors():
                queries = [b.minimum(b.add(self.queries.first, b.index(v * WORDS + i)), last) for i in range(WORDS)]
                points = [self._score_loop(i, b.index(0), d) for i in queries]
                loaded = [self._load(self._row(self.plan.parts.scores, self.plan.parts.query, point)) for point in points]
                for p, pair in enumerate(transpose(b, loaded)):
                    at = b.add(b.mul(b.div(d, b.index(2)), b.index(rows)), b.index(p * rows + v * WORDS))
                    b.store(pair, self._words("query", at), 4 * WORDS)

        self._groups(self.plan.depth, transpose_block)

    def _scores(self, first: Value, count: Value) -> None:
        """K of the block as it lies, then the rows of S^T: those behind the last key are never read."""
        b, ev, depth = self.frame.b, self.frame.emitter, int(self.plan.depth)
        multiplied = self._multiplied_keys(count)
        with b.loop(b.index(0), multiplied, b.index(1)) as rows, ev.scope():
            for d in range(0, depth, BF16.depth):
                point = self._score_loop(b.index(0), self._key(first, rows.iv), b.index(d))
                at = b.add(b.mul(rows.iv, b.index(depth // 2)), b.index(d // 2))
                b.store(self._load(self._row(self.plan.parts.scores, 1 - self.plan.parts.query, point)), self._words("keys", at), 4 * WORDS)
        self._multiply("keys", multiplied, b.index(depth), depth, "query", "scores")

    # -- the softmax's weights
    def _exponentials(self, count: Value) -> None:
        """Weights of two keys at a time, their sum in float32, and both rounded in one word. Weights behind the last key are 0."""
        b = self.frame.b
        half = b.div(b.add(count, b.index(1)), b.index(2))
        highest = [self._get("max", None, v) for v in self._vectors()]
        start = [self._get("sum", None, v) for v in self._vectors()]
        with b.loop(b.index(0), half, b.index(1), start) as loop:
            made = []
            j = b.mul(loop.iv, b.index(2))
            exists = b.compare("slt", b.add(j, b.index(1)), count)
            for v in self._vectors():
                pair = [self._weight(j, highest[v], v), self._weight(b.add(j, b.index(1)), highest[v], v)]
                pair[1] = b.select(exists, pair[1], b.splat_constant(b.f32, 0.0))
                self._put_words(_rounded_pair(b, pair), loop.iv, v)
                made.append(b.binary("arith.addf", b.binary("arith.addf", loop.args[v], pair[0]), pair[1]))
            loop.yield_(made)
        for v in self._vectors():
            self._put(loop.results[v], "sum", None, v)
        with b.loop(half, b.div(b.add(self._multiplied_keys(count), b.index(1)), b.index(2)), b.index(1)) as rest:
            for v in self._vectors():
                self._put_words(b.splat_constant(b.i32, 0, WORDS), rest.iv, v)

    def _weight(self, j: Value, highest: Value, v: int) -> Value:
        b = self.frame.b
        return b.op("math.exp", [b.binary("arith.subf", self._get("scores", j, v), highest)], b.vec(b.f32))

    def _put_words(self, words: Value, pair: Value, v: int) -> None:
        b = self.frame.b
        b.store(words, self._words("weights", b.add(b.mul(pair, b.index(self.plan.block_rows)), b.index(v * WORDS))), 4 * WORDS)

    def _weigh(self, first: Value, count: Value) -> None:
        b, ev = self.frame.b, self.frame.emitter
        with b.loop(b.index(0), self._multiplied_keys(count), b.index(BF16.depth)) as keys, ev.scope():
            self._groups(self.plan.width, lambda d: self._transpose_values(first, count, keys.iv, d))
        scale = [self._get("scale", None, v) for v in self._vectors()]
        with b.loop(b.index(0), ev.sizes(self.plan.width), b.index(1)) as loop:
            for v in self._vectors():
                self._put(b.binary("arith.mulf", self._get("output", loop.iv, v), scale[v]), "output", loop.iv, v)
        self._multiply("values", ev.sizes(self.plan.width), self._multiplied_keys(count), BLOCK, "weights", "output", onto=True)

    def _transpose_values(self, first: Value, count: Value, keys: Value, d: Value) -> None:
        """V^T of 32 columns from d on by 32 keys from number `keys` of the block on."""
        b = self.frame.b
        i32 = b.i32
        low: list[Value] = []
        high: list[Value] = []
        for pair in range(WORDS):
            a, c = (self._value_words(first, count, b.add(keys, b.index(2 * pair + odd)), d) for odd in (0, 1))
            shift = b.splat_constant(i32, 16, WORDS)
            low.append(_join(b, b.binary("arith.andi", a, b.splat_constant(i32, LOW_HALF, WORDS)), b.binary("arith.shli", c, shift)))
            high.append(_join(b, b.binary("arith.shrui", a, shift), b.binary("arith.andi", c, b.splat_constant(i32, HIGH_HALF, WORDS))))
        for odd, block in enumerate((low, high)):
            for row, words in enumerate(transpose(b, block)):
                at = b.add(b.mul(b.add(d, b.index(odd * TILE_ROWS + row)), b.index(BLOCK // 2)), b.div(keys, b.index(2)))
                b.store(words, self._words("values", at), 4 * WORDS)

    def _value_words(self, first: Value, count: Value, j: Value, d: Value) -> Value:
        """32 columns of a value; 0 behind the last key."""
        b = self.frame.b
        point = self._value_loop(b.index(0), self._key(first, j), d)
        loaded = self._load(self._row(self.plan.parts.values, 1 - self.plan.parts.weights, point))
        return b.select(b.compare("slt", j, count), loaded, b.splat_constant(b.i32, 0, WORDS))

    # -- results
    def _finish(self) -> None:
        """Divide by the sums, turn O^T round, put columns in order and write rows."""
        b, ev = self.frame.b, self.frame.emitter
        factors = self._factors()

        def transpose_block(d: Value) -> None:
            for v in self._vectors():
                blocks = []
                for odd in (0, 1):
                    rows = [self._get("output", b.add(d, b.index(odd * TILE_ROWS + r)), v) for r in range(TILE_ROWS)]
                    blocks.append(transpose(b, [b.binary("arith.mulf", row, factors[v]) for row in rows]))
                for i, (even, odd) in enumerate(zip(*blocks, strict=True)):
                    at = b.add(b.index((v * WORDS + i) * int(self.plan.width)), d)
                    for half in (0, 1):
                        order = [lane for each in range(8 * half, 8 * half + 8) for lane in (each, WORDS + each)]
                        mixed = b.op("vector.shuffle", [even, odd], even.type, mask=ir.DenseI64ArrayAttr.get(order))
                        b.store(mixed, b.address(self._at("rows"), b.add(at, b.index(half * WORDS)), b.f32), 4 * WORDS)

        self._groups(self.plan.width, transpose_block)

        def row_of(row: Value, column: Value) -> Value:
            at = b.add(b.mul(row, ev.sizes(self.plan.width)), column)
            return b.load(b.address(self._at("rows"), at, b.f32), b.vec(b.f32), 4 * WORDS)

        self._write(row_of)


class TiledAttentionEmitter(PairedAttentionEmitter):
    """By AMX's matrix tiles, a whole block of keys at a time."""

    def _multiplied_keys(self, count: Value) -> Value:
        return self.frame.b.index(BLOCK)

    def _multiply(self, left: str, rows: Value, k: Value, row_length: int, right: str, out: str, onto: bool = False) -> None:
        b, columns = self.frame.b, self.plan.block_rows
        num_rows, depth = b.known(rows), b.known(k)
        assert num_rows is not None and depth is not None
        for row in range(0, num_rows, TILE_ROWS * BLOCK_TILES):
            tiles = range(row, row + TILE_ROWS * BLOCK_TILES, TILE_ROWS)
            a = [Strided(self._words(left, b.index(at * row_length // 2)), b.index(row_length), b.index(1)) for at in tiles]
            panel = Panel(self._at(right), b.index(columns), 4 * WORDS)
            multiply_tiles(b, a, panel, columns, depth, self._words(out, b.index(row * columns)), columns, onto)


class DotAttentionEmitter(PairedAttentionEmitter):
    """By dot products of pairs, of the keys that there are."""

    def _multiplied_keys(self, count: Value) -> Value:
        return count

    def _multiply(self, left: str, rows: Value, k: Value, row_length: int, right: str, out: str, onto: bool = False) -> None:
        b, columns = self.frame.b, self.plan.block_rows
        panel, pairs = Panel(self._at(right), b.index(columns), 4 * WORDS), b.div(b.add(k, b.index(1)), b.index(2))

        def block(row: Value, part: TileShape) -> None:
            a = Strided(self._words(left, b.mul(row, b.index(row_length // 2))), b.index(row_length), b.index(1))
            place = self._words(out, b.mul(row, b.index(columns)))
            start = load_tile(b, part, place, columns) if onto else zeros(b, part)
            store_tile(b, part, dot_pairs(b, part, a, panel, pairs, start), place, columns)

        for_row_blocks(b, b.index(0), rows, row_tiles(self.plan.shape, columns), block)


def _join(b: Builder, low: Value, high: Value) -> Value:
    return b.binary("arith.ori", low, high)


def _rounded_pair(b: Builder, pair: Sequence[Value]) -> Value:
    """Two vectors of float32 rounded to bfloat16, as words with the first in their low half."""
    i16 = ir.IntegerType.get_signless(16)
    both = b.vec(ir.BF16Type.get(), 2 * WORDS)
    halves = b.intrinsic("llvm.x86.avx512bf16.cvtne2ps2bf16.512", [pair[1], pair[0]], both)
    bits = b.op("arith.bitcast", [halves], b.vec(i16, 2 * WORDS))
    order = [lane for each in range(WORDS) for lane in (each, WORDS + each)]
    mixed = b.op("vector.shuffle", [bits, bits], bits.type, mask=ir.DenseI64ArrayAttr.get(order))
    return b.op("vector.bitcast", [mixed], b.vec(b.i32, WORDS))


def emit_attention(module: ir.Module, dispatch: Dispatch, target: CpuTarget) -> Launch:
    """Append the kernel of an `attention` dispatch."""
    tile = register_tile(target.vector_bits)
    by_tiles = has_matrix_tiles(target)
    if (by_tiles or has_dot_products(target)) and (paired := PairedAttentionPlan(dispatch, tile)).fits:
        return _emit(module, paired, TiledAttentionEmitter if by_tiles else DotAttentionEmitter)
    return _emit(module, AttentionPlan(dispatch, tile), AttentionEmitter)


def _emit(module: ir.Module, plan: AttentionPlan, emitter: type[AttentionEmitter]) -> Launch:
    with kernel(module, plan.dispatch, lanes=plan.shape.lanes) as frame, frame.tiles() as tile:
        emitter(plan, frame, QueryBlock.of(plan, frame, tile)).emit()
    return plan.launch
