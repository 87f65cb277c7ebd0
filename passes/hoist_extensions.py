"""hoist-extensions: take the extension of half-precision factors out of contractions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from llmos.compiler.analysis.casts import EXTEND, convert
from llmos.compiler.analysis.generic import Generic, is_fill
from llmos.compiler.ir.bindings import ir
from llmos.passes._context import PassContext
from llmos.passes._pass import Pass


@dataclass(frozen=True)
class HoistExtensions(Pass):
    """A product of float16 or bfloat16 with sums in float32 becomes a contraction of float32 whose factors are extended before it.

    Before:
        linalg.generic {sum over k of extf(a) * extf(b)} ins(%a, %b : tensor<8x64xf16>, tensor<64x32xf16>) outs(... f32)
    After:
        %0 = linalg.generic {extf} ins(%a)
        %1 = linalg.generic {extf} ins(%b)
        linalg.generic {sum over k of a * b} ins(%0, %1 : tensor<8x64xf32>, tensor<64x32xf32>)

    The extension of a weight is then done at compile time, that of anything else where the contraction's kernel reads it.
    """

    def run(self, module: ir.Module, context: PassContext) -> None:
        """Extend the factors of half-precision contractions before these, in every function."""
        for func in module.body.operations:
            for op in list(func.operation.regions[0].blocks[0].operations):
                if op.operation.name == "linalg.generic" and not is_fill(op.operation):
                    _hoist(Generic(op.operation))


def _hoist(generic: Generic) -> None:
    """Extend the inputs of one op before it, if it is a sum of products but for that."""
    names = Counter(op.name for op in generic.body.operations)
    if generic.is_elementwise or names - Counter({EXTEND: 2}) != Counter(("arith.mulf", "arith.addf", "linalg.yield")):
        return
    for number, argument in enumerate(list(generic.body.arguments)[: generic.num_inputs]):
        users = [use.owner.operation for use in argument.uses]
        if [user.name for user in users] != [EXTEND]:
            continue
        with ir.InsertionPoint(generic.op):
            generic.op.operands[number] = convert(generic.op.operands[number], EXTEND, users[0].results[0].type)
        argument.set_type(users[0].results[0].type)
        users[0].results[0].replace_all_uses_with(argument)
        users[0].erase()
