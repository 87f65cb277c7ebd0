"""Complex numbers as pairs of real ones: rules rewrite a graph with complex tensors op by op to one without (program.py).

A rule takes the op's arguments, with a `Pair` for each complex tensor, and expresses the op in other torch ops. Formulas follow torch's
documentation and, for inverse functions, W. Kahan, "Branch Cuts for Complex Elementary Functions" (1987).
"""

from __future__ import annotations

from llmos.compiler.frontend.complex_numbers.program import COMPLEX, as_pairs, has_complex

__all__ = ["COMPLEX", "as_pairs", "has_complex"]
