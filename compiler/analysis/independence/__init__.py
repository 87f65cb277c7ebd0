"""Which dimension of an entry is a batch: row i of every output depends on row i of the inputs alone, and on no size of that dimension.

A data-flow analysis of the planned module. What it can't prove it denies: requests are joined only along a dimension that it names.
"""

from llmos.compiler.analysis.independence.entry import row_independence
from llmos.compiler.analysis.independence.function import Function

__all__ = ["Function", "row_independence"]
