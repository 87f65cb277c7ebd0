"""quantize-tables: rows of large tables that are looked up, such as embeddings, are stored in int8 or float8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from llmos.compiler.ir.bindings import arith, ir
from llmos.compiler.ir.functions import EntryFunc, public_functions
from llmos.passes._context import PassContext
from llmos.passes._contracts import WEIGHTS_BEHIND_INPUTS
from llmos.passes._pass import Pass
from llmos.passes._property import ONLY_LINALG_GENERICS, Property
from llmos.passes.quant._float8 import decoded, float8
from llmos.passes.quant._rounding import Quantized, symmetric


@dataclass(frozen=True)
class QuantizeTables(Pass):
    """A float32 weight [rows, columns] that is read by lookups alone becomes int8 with a scale a row.

    Before:
        linalg.generic {tensor.extract %w[%id, %j]}                                // tensor<30522x384xf32>
    After:
        %sw = linalg.generic {max|w| / 127}                                        // tensor<30522xf32>, from the weight alone
        %qw = linalg.generic {round(w / sw)} attrs = {llmos.quantize = int8}       // tensor<30522x384xi8>
        linalg.generic {sitofp(tensor.extract %qw[%id, %j]) * tensor.extract %sw[%id]}

    A table that a product reads too stays: it would be stored twice. Formulas are those of `_rounding.py`: a row of zeros has the scale 1,
    one with a NaN or an infinity the scale NaN.

    keep: names of tables that stay, such as those that another entry multiplies by. min_rows, min_columns: of a table that is worth it.
    float8: whether numbers are floats, E4M3 (_float8.py), instead of int8.
    """

    requires: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})
    ensures: ClassVar[frozenset[Property]] = frozenset({ONLY_LINALG_GENERICS, WEIGHTS_BEHIND_INPUTS})

    min_rows: int = 256
    min_columns: int = 16
    float8: bool = False
    keep: tuple[str, ...] = ()

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Quantize every weight that is large enough and only looked up."""
        for func in public_functions(module):
            for weight in EntryFunc(func).arguments.weights:
                lookups = lookups_of(weight.value)
                if lookups and self._is_large(weight.value) and weight.name not in self.keep:
                    table = float8(weight.value, (1,)) if self.float8 else symmetric(weight.value, (1,), "int8")
                    for lookup in lookups:
                        _dequantize(lookup, table, self.float8)

    def _is_large(self, weight: ir.Value) -> bool:
        kind = ir.RankedTensorType(weight.type)
        if kind.rank != 2 or not isinstance(kind.element_type, ir.F32Type):
            return False
        return bool(kind.shape[0] >= self.min_rows and kind.shape[1] >= self.min_columns)


def lookups_of(weight: ir.Value) -> list[ir.Operation]:
    """Return the ops that look up an element of a weight; none if anything else reads it."""
    users = [use.owner.operation for use in weight.uses]
    return users if all(user.name == "tensor.extract" for user in users) else []


def _dequantize(lookup: ir.Operation, table: Quantized, is_float8: bool) -> None:
    """Read a number and its row's scale in the place of an element."""
    row = list(lookup.operands)[1]
    with ir.InsertionPoint(lookup), lookup.location:
        number = _extract(table.numbers, list(lookup.operands)[1:])
        value = decoded(number) if is_float8 else arith.sitofp(ir.F32Type.get(), number)
        made = arith.mulf(value, _extract(table.scale, [row]))
    lookup.results[0].replace_all_uses_with(made)
    lookup.erase()


def _extract(tensor: ir.Value, indices: list[ir.Value]) -> ir.Value:
    element = ir.RankedTensorType(tensor.type).element_type
    return ir.Operation.create("tensor.extract", results=[element], operands=[tensor, *indices]).results[0]
