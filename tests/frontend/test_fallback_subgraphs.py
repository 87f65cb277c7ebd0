"""torch-mlir as the fallback: it never gets a view of two dynamic dims."""

from __future__ import annotations

import pytest
import torch

from llmos.compiler.frontend.fallback_subgraphs import lowered_in_child
from llmos.compiler.frontend.lowering import reject_dynamic_views
from llmos.compiler.frontend.torch import import_torch, to_numpy
from llmos.compiler.ir.bindings import context, ir
from llmos.runtime.errors import UnsupportedError
from tests.reference import run

VIEW = """
func.func @f(%x: !torch.vtensor<{old},f32>, %size: !torch.int) -> !torch.vtensor<{new},f32> {{
  %list = torch.prim.ListConstruct %size, %size : (!torch.int, !torch.int) -> !torch.list<int>
  %0 = torch.aten.view %x, %list : !torch.vtensor<{old},f32>, !torch.list<int> -> !torch.vtensor<{new},f32>
  return %0 : !torch.vtensor<{new},f32>
}}
"""


@pytest.mark.parametrize(("old", "new"), [("[?,?,8]", "[?,8]"), ("[?,8]", "[?,?,8]")])
def test_a_view_of_two_dynamic_dims_is_refused(old: str, new: str) -> None:
    with pytest.raises(UnsupportedError, match="reshape of dynamic sizes"):
        reject_dynamic_views(ir.Module.parse(VIEW.format(old=old, new=new), context()))


RANK_ZERO = """
func.func @f(%x: !torch.vtensor<[],f32>) -> !torch.vtensor<[?,0],si64> {
  %0 = torch.aten.nonzero %x : !torch.vtensor<[],f32> -> !torch.vtensor<[?,0],si64>
  return %0 : !torch.vtensor<[?,0],si64>
}
"""


def test_an_op_that_ends_torch_mlir_is_an_error_of_this_process() -> None:
    with pytest.raises(UnsupportedError, match="torch-mlir can't lower this"):
        lowered_in_child(ir.Module.parse(RANK_ZERO, context()), "aten.nonzero")


def test_a_view_of_one_dynamic_dim_is_safe() -> None:
    reject_dynamic_views(ir.Module.parse(VIEW.format(old="[?,2,4]", new="[?,8]"), context()))


def test_a_size_that_export_fixes_without_saying_so_is_static_for_torch_mlir_too() -> None:
    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.empty_strided((4, 5), (1, 4)).copy_(x)

    x = torch.randn(4, 5)
    model = import_torch(Module(), (x,), (dict.fromkeys(range(2), torch.export.Dim.AUTO),))
    (got,) = run(model, [to_numpy(x)])
    assert (got == to_numpy(x)).all()
