"""torch-mlir as the fallback: it never gets a view of two dynamic dims."""

from __future__ import annotations

import pytest

from llmos.compiler.frontend.islands import _reject_dynamic_views
from llmos.compiler.ir import context, ir
from llmos.runtime.errors import UnsupportedError

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
        _reject_dynamic_views(ir.Module.parse(VIEW.format(old=old, new=new), context()))


def test_a_view_of_one_dynamic_dim_is_safe() -> None:
    _reject_dynamic_views(ir.Module.parse(VIEW.format(old="[?,2,4]", new="[?,8]"), context()))
