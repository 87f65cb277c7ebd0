"""Elementary functions as sequences of arith, math.fma and bit operations: what `expand-math` writes in place of calls to libm.

Everything works on a scalar or on a vector of any shape and does the same operations on each lane, so a value doesn't depend on the
vector's width. Error bounds are in units in the last place (ulp) of the exact result, and hold on every processor with a fused
multiply-add.
"""
