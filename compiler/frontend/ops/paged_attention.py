"""`llmos::write_kv_cache` as scatters, `llmos::paged_attention` as one generic whose region is a streaming softmax."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from llmos.compiler.analysis.paged_attention import BLOCK_SIZE, SCALE_BYTES, SCALE_OF_LARGEST, BlockLayout, PagedAttention
from llmos.compiler.frontend import scalars as s
from llmos.compiler.frontend.builder import Builder, Meta, Tensor, affine_dim
from llmos.compiler.frontend.ops.scatters import read, scattered
from llmos.compiler.frontend.scalars import Scalar, to_index
from llmos.compiler.ir.attributes import PAGED_ATTENTION
from llmos.compiler.ir.bindings import arith, ir, linalg, scf, tensor


def write_kv_cache(b: Builder, result: Meta, cache: Tensor, key: Tensor, value: Tensor, slots: Tensor) -> Tensor:
    """Write key and value [tokens, heads, head_dim] into a paged cache; a slot outside of it is an error of the call."""
    head_dim = key.shape[-1]
    assert isinstance(head_dim, int)
    layout = BlockLayout(head_dim, cache.dtype == torch.int8)

    def writer(source: Tensor, element: Callable[[ir.Value, ir.Value], ir.Value]) -> Callable[..., tuple[list[ir.Value], Scalar]]:
        def update(at: list[ir.Value]) -> tuple[list[ir.Value], Scalar]:
            token, head, dim = at
            slot = to_index(read(b, slots, [token]))
            size = b.index(BLOCK_SIZE)
            # Unsigned: a negative slot is far outside.
            place = [arith.divui(slot, size), head, element(arith.remui(slot, size), dim)]
            return place, read(b, source, at).to(cache.dtype)

        return update

    def key_element(offset: ir.Value, dim: ir.Value) -> ir.Value:
        return arith.addi(arith.muli(dim, b.index(BLOCK_SIZE)), offset)

    def value_element(offset: ir.Value, dim: ir.Value) -> ir.Value:
        start = arith.addi(arith.muli(offset, b.index(layout.padded)), b.index(layout.values))
        return arith.addi(start, dim)

    written = cache
    if layout.has_scales:
        scales = [_scales(b, each) for each in (key, value)]
        key, value = (_quantized(b, each, scale) for each, scale in zip((key, value), scales, strict=True))
        written = _with_scales(b, written, slots, scales, layout)
    written = scattered(b, written, key.shape, writer(key, key_element))
    return scattered(b, written, value.shape, writer(value, value_element))


def _scales(b: Builder, x: Tensor) -> Tensor:
    """Scales [tokens, heads], bfloat16, of x [tokens, heads, head_dim]."""
    magnitudes = b.elementwise(s.absolute, [b.cast(x, torch.float32)], torch.float32)
    largest = b.reduce(magnitudes, [2], 0.0, lambda v, total: total.max(v), torch.float32, keepdim=False)
    return b.elementwise(lambda v: (v * SCALE_OF_LARGEST).to(torch.bfloat16), [largest], torch.bfloat16)


def _quantized(b: Builder, x: Tensor, scales: Tensor) -> Tensor:
    """x in scales, as int8; what is NaN has a scale of NaN."""

    def body(v: Scalar, scale: Scalar) -> Scalar:
        scale = scale.to(torch.float32)
        number = s.round_even(v / s.select(scale.equals(0.0), 1.0, scale))
        number = s.select(number >= -127.0, number, -127.0)
        return s.truncate(s.select(number <= 127.0, number, 127.0)).to(torch.int8)

    return b.elementwise(body, [b.cast(x, torch.float32), b.unsqueeze(scales, 2)], torch.int8, x.shape)


def _with_scales(b: Builder, cache: Tensor, slots: Tensor, scales: Sequence[Tensor], layout: BlockLayout) -> Tensor:
    """Write the bytes of the scales of keys and values."""

    def update(at: list[ir.Value]) -> tuple[list[ir.Value], Scalar]:
        token, head, number = at
        slot, size, two = to_index(read(b, slots, [token])), b.index(BLOCK_SIZE), b.index(SCALE_BYTES)
        of_values = arith.divui(number, two)
        row = arith.addi(arith.muli(of_values, size), arith.remui(slot, size))
        element = arith.addi(arith.addi(b.index(layout.scales), arith.muli(row, two)), arith.remui(number, two))
        key, value = (s.bitcast(read(b, each, [token, head]), torch.int16).to(torch.int32) for each in scales)
        is_value = s.from_index(of_values, torch.int64).equals(1)
        byte = s.from_index(arith.remui(number, two), torch.int32)
        bits = s.select(is_value, value, key) >> byte * 8
        return [arith.divui(slot, size), head, element], bits.to(torch.int8)

    return scattered(b, cache, (*scales[0].shape, 2 * SCALE_BYTES), update)


def paged_attention(
    b: Builder,
    result: Meta,
    query: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    positions: Tensor,
    token_requests: Tensor,
    sinks: Tensor | None,
    scale: float,
    window: int,
    softcap: float,
) -> Tensor:
    """Attend over the cached positions of each token's request; formulas are the op's in torch (frontend/paged_attention.py)."""
    _, num_heads, head_dim = query.shape
    kv_heads = cache.shape[1]
    assert isinstance(num_heads, int) and isinstance(head_dim, int) and isinstance(kv_heads, int)
    parameters = PagedAttention(head_dim, num_heads // kv_heads, scale, window, softcap, cache.dtype == torch.int8)
    zero = ir.AffineExpr.get_constant(0)
    loops = [affine_dim(i) for i in range(3)]
    query, cache, block_tables = (b.dense(each) for each in (query, cache, block_tables))
    inputs: list[tuple[Tensor, Sequence[ir.AffineExpr]]] = [
        (query, loops),
        (b.dense(positions), loops[:1]),
        (b.dense(token_requests), loops[:1]),
        (cache, [zero] * 3),
        (block_tables, [zero] * 2),
        *([(b.dense(sinks), loops[1:2])] if sinks is not None else []),
    ]

    def body(_: Scalar, position: Scalar, request: Scalar, *more: Scalar) -> list[Scalar]:
        reference = _Reference(b, parameters, query, cache, block_tables, position, request)
        return [reference.result(more[2].to(torch.float32) if sinks is not None else None).to(result.dtype)]

    (value,) = b.generic(inputs, [(b.empty(result.shape, result.dtype), result.dtype, loops)], ["parallel"] * 3, body)
    value.owner.operation.attributes[PAGED_ATTENTION] = parameters.attribute()
    return b.dense_tensor(value, result.shape, result.dtype)


class _Reference:
    """One element of the result, by a loop over positions that carries maximum, sum and weighted values."""

    def __init__(
        self, b: Builder, parameters: PagedAttention, query: Tensor, cache: Tensor, tables: Tensor, position: Scalar, request: Scalar
    ) -> None:
        self.b, self.parameters, self.query, self.cache, self.tables = b, parameters, query, cache, tables
        self.position, self.request = to_index(position), to_index(request)
        i64 = ir.IntegerType.get_signless(64)
        self.token, self.head, self.dim = (linalg.IndexOp(ir.IntegerAttr.get(i64, i)).result for i in range(3))

    def result(self, sink: Scalar | None) -> Scalar:
        f32 = torch.float32
        first = self._number(0)
        if self.parameters.window:
            behind = arith.subi(self.position, self._number(self.parameters.window - 1))
            first = arith.maxsi(behind, first)
        start = [s.constant(-3.4028234663852886e38, f32), s.constant(0.0, f32), s.constant(0.0, f32)]
        loop = scf.ForOp(first, arith.addi(self.position, self._number(1)), self._number(1), [each.value for each in start])
        with ir.InsertionPoint(loop.body):
            highest, total, weighted = (Scalar(value, f32) for value in loop.inner_iter_args)
            block, offset = self._place(loop.induction_variable)
            score = self._score(block, offset)
            new = highest.max(score)
            kept, weight = s.exp(highest - new), s.exp(score - new)
            value = self._value(block, offset)
            scf.YieldOp([new.value, (total * kept + weight).value, (weighted * kept + weight * value).value])
        highest, total, weighted = (Scalar(value, f32) for value in loop.results)
        if sink is None:
            return weighted / total
        new = highest.max(sink)
        kept = s.exp(highest - new)
        return weighted * kept / (total * kept + s.exp(sink - new))

    def _number(self, number: int) -> ir.Value:
        return arith.ConstantOp(ir.IndexType.get(), number).result

    def _place(self, position: ir.Value) -> tuple[ir.Value, ir.Value]:
        size = self._number(BLOCK_SIZE)
        block = tensor.ExtractOp(self.tables.value, [self.request, arith.divui(position, size)]).result
        return to_index(Scalar(block, self.tables.dtype)), arith.remui(position, size)

    def _read(self, block: ir.Value, element: ir.Value) -> Scalar:
        head = arith.divui(self.head, self._number(self.parameters.group))
        return Scalar(tensor.ExtractOp(self.cache.value, [block, head, element]).result, self.cache.dtype).to(torch.float32)

    def _score(self, block: ir.Value, offset: ir.Value) -> Scalar:
        p, f32 = self.parameters, torch.float32
        loop = scf.ForOp(self._number(0), self._number(p.head_dim), self._number(1), [s.constant(0.0, f32).value])
        with ir.InsertionPoint(loop.body):
            dim = loop.induction_variable
            query = Scalar(tensor.ExtractOp(self.query.value, [self.token, self.head, dim]).result, self.query.dtype).to(f32)
            key = self._read(block, arith.addi(arith.muli(dim, self._number(BLOCK_SIZE)), offset))
            scf.YieldOp([(Scalar(loop.inner_iter_args[0], f32) + query * key).value])
        score = Scalar(loop.results[0], f32) * p.scale
        if p.has_scales:
            score = score * self._scale(0, block, offset)
        return s.tanh(score * (1 / p.softcap)) * p.softcap if p.softcap else score

    def _value(self, block: ir.Value, offset: ir.Value) -> Scalar:
        layout = self.parameters.layout
        start = arith.addi(arith.muli(offset, self._number(layout.padded)), self._number(layout.values))
        value = self._read(block, arith.addi(start, self.dim))
        return value * self._scale(1, block, offset) if layout.has_scales else value

    def _scale(self, kind: int, block: ir.Value, offset: ir.Value) -> Scalar:
        """The scale of a position's key (0) or value (1): two bytes, the upper half of a float32."""
        first = self._number(self.parameters.layout.scales + kind * BLOCK_SIZE * SCALE_BYTES)
        first = arith.addi(first, arith.muli(offset, self._number(SCALE_BYTES)))
        low, high = (self._byte(block, arith.addi(first, self._number(each))) for each in range(SCALE_BYTES))
        return s.bitcast(((high << 8) | (low & 255)) << 16, torch.float32)

    def _byte(self, block: ir.Value, element: ir.Value) -> Scalar:
        head = arith.divui(self.head, self._number(self.parameters.group))
        return Scalar(tensor.ExtractOp(self.cache.value, [block, head, element]).result, self.cache.dtype).to(torch.int32)


def table() -> dict[str, Callable[..., Tensor]]:
    """Return the lowerings by overload name."""
    return {"llmos.write_kv_cache.default": write_kv_cache, "llmos.paged_attention.default": paged_attention}
