"""Attention of tokens over a paged cache in the IR: one linalg.generic that carries `llmos.paged_attention`.

The region is a whole reference: a streaming softmax over the positions of the token's request. Kernels go by the attribute. A block of
the cache holds the keys and values of BLOCK_SIZE positions for one key-value head, laid out as the right sides of the two products:

    keys   [head_dim][BLOCK_SIZE]               then
    values [BLOCK_SIZE][head_dim, padded to a multiple of LANES]

A block of int8 holds each position's key and value as integers of [-127, 127] with a scale each, and behind them

    scales [2][BLOCK_SIZE], bfloat16: those of the keys, then those of the values.

A scale is the largest magnitude of the head's elements times SCALE_OF_LARGEST, rounded to bfloat16; the integers are the elements divided
by it, rounded to even.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmos.compiler.ir.attributes import PAGED_ATTENTION
from llmos.compiler.ir.bindings import ir

BLOCK_SIZE = 16  # positions of a block
LANES = 16  # a row of values fills whole vectors of so many elements
SCALE_BYTES = 2
SCALE_OF_LARGEST = (1 + 2**-8) / 127  # however it is rounded to bfloat16, no element is more than 127 scales
OPERANDS = ("query", "positions", "token_requests", "cache", "block_tables", "sinks")  # of the op, in order; it may have no sinks


@dataclass(frozen=True)
class BlockLayout:
    """Offsets, in elements, inside the block of one key-value head. has_scales: whether it is one of int8."""

    head_dim: int
    has_scales: bool = False

    @property
    def padded(self) -> int:
        """Return the elements from one position's value to the next one's."""
        return -(-self.head_dim // LANES) * LANES

    @property
    def values(self) -> int:
        """Return where the values begin."""
        return self.head_dim * BLOCK_SIZE

    @property
    def scales(self) -> int:
        """Return where the scales begin, if there are any."""
        return self.values + BLOCK_SIZE * self.padded

    @property
    def num_elements(self) -> int:
        """Return the elements of a block."""
        return self.scales + (2 * BLOCK_SIZE * SCALE_BYTES if self.has_scales else 0)


@dataclass(frozen=True)
class PagedAttention:
    """The parameters of one op.

    Token t of query [tokens, heads, head_dim] attends to positions p of its request with position - window < p <= position (0: no
    window): softmax(cap(scale * q . k)) v, where cap(s) = softcap * tanh(s / softcap) (0: none). Query head h reads key-value head
    h // group. A sink [heads] is one score more in the softmax of its head, without a value.
    """

    head_dim: int
    group: int
    scale: float
    window: int = 0
    softcap: float = 0.0
    has_scales: bool = False

    @property
    def layout(self) -> BlockLayout:
        """Return the layout of a block of its cache."""
        return BlockLayout(self.head_dim, self.has_scales)

    def attribute(self) -> ir.DictAttr:
        """Return the dictionary that `of` reads."""
        f64, i64 = ir.F64Type.get(), ir.IntegerType.get_signless(64)
        numbers = {name: ir.IntegerAttr.get(i64, getattr(self, name)) for name in ("head_dim", "group", "window")}
        return ir.DictAttr.get({**numbers, **{name: ir.FloatAttr.get(f64, getattr(self, name)) for name in ("scale", "softcap")}})

    @staticmethod
    def of(op: ir.Operation) -> PagedAttention:
        """Read the attribute of an op that has one."""
        named = ir.DictAttr(op.attributes[PAGED_ATTENTION])
        head_dim, group, window = (int(ir.IntegerAttr(named[name]).value) for name in ("head_dim", "group", "window"))
        scale, softcap = (float(ir.FloatAttr(named[name]).value) for name in ("scale", "softcap"))
        cache = ir.RankedTensorType(op.operands[OPERANDS.index("cache")].type)
        return PagedAttention(head_dim, group, scale, window, softcap, has_scales(cache.element_type))


def has_scales(kind: ir.Type) -> bool:
    """Whether blocks of a cache of that element type hold scales."""
    return isinstance(kind, ir.IntegerType)


def is_paged_attention(op: ir.Operation) -> bool:
    """Whether an op is attention over a paged cache."""
    return PAGED_ATTENTION in op.attributes
