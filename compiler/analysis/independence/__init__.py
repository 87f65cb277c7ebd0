"""Analysis of the batch dimension of an entry: row i of every output depends only on row i of the inputs, not on the batch size.

A conservative data-flow analysis of the planned module: requests are batched only along a dimension that it proves.
"""

from llmos.compiler.analysis.independence.entry import row_independence
from llmos.compiler.analysis.independence.function import Function

__all__ = ["Function", "row_independence"]
