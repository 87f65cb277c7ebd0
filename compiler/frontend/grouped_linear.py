"""Products of groups of rows, each by a matrix of its own, as one op of a torch program: `llmos::grouped_linear`.

The experts of a mixture are such groups. Its torch implementation is the reference of compiled models; the compiler lowers the op in
frontend/ops/grouped_linear.py.
"""

from __future__ import annotations

import torch


@torch.library.custom_op("llmos::grouped_linear", mutates_args=())
def grouped_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, begins: torch.Tensor, ends: torch.Tensor
) -> torch.Tensor:
    """Return x [rows, k] times a matrix of weight [groups * n, k], transposed, plus bias [groups * n]: [rows, n].

    begins, ends [groups]: rows [begins[g], ends[g]) are multiplied by rows [g * n, (g + 1) * n) of the weight; others are 0.
    """
    num_columns = weight.shape[0] // len(ends)
    made = x.new_zeros(len(x), num_columns)
    for group, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        own = slice(group * num_columns, (group + 1) * num_columns)
        made[begin:end] = torch.nn.functional.linear(x[begin:end], weight[own], None if bias is None else bias[own])
    return made


@grouped_linear.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, begins: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0] // ends.shape[0])
