"""update-in-place: which dispatches write into an updated input, and which must not."""

from __future__ import annotations

import torch

from llmos.compiler.frontend.torch import import_torch
from llmos.compiler.ir.bindings import ir
from llmos.passes import Pass, run_pipeline
from llmos.passes.plan_memory import PlanMemory
from llmos.passes.update_in_place import UpdateInPlace

from .ir_tests import CONTEXT, PIPELINE, QUIET, Call, check

BEFORE = PIPELINE[: PIPELINE.index(UpdateInPlace())]
CACHE, ROW, AT = torch.zeros(8, 4), torch.zeros(1, 4), torch.tensor([2])


def placed(function: object, *inputs: torch.Tensor, passes: tuple[Pass, ...] = (UpdateInPlace(),)) -> ir.Module:
    module = import_torch(Call(function).eval(), [each.clone() for each in inputs], name="m").module
    run_pipeline(module, [*BEFORE, *passes], options=QUIET, context=CONTEXT)
    return module


def test_a_scatter_writes_into_the_input() -> None:
    def function(cache: torch.Tensor, row: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(0, at, row)
        return row + 1

    check(
        placed(function, CACHE, ROW, AT, passes=(UpdateInPlace(), PlanMemory())),
        """
        CHECK: func.func @main
        CHECK-SAME: llmos.slots = []
        CHECK: call @d0_scatter(%arg0, {{.*}}llmos.buffers = array<i64: -2147483648>
        CHECK-SAME: llmos.within = 0
        CHECK: func.func private @d0_scatter
        CHECK-SAME: llmos.in_place = 0
        """,
    )


def test_through_views_and_one_after_the_other() -> None:
    def function(cache: torch.Tensor, row: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        flat = cache.view(-1, 4)
        flat[at] = row
        flat[at + 1] = row * 2
        return cache.sum()

    check(
        placed(function, torch.zeros(4, 2, 4), ROW, AT),
        """
        CHECK: call @{{d[0-9]+}}_scatter{{.*}}llmos.within = 0
        CHECK: call @{{d[0-9]+}}_scatter{{.*}}llmos.within = 0
        CHECK: func.func private @{{d[0-9]+}}_scatter{{.*}}llmos.in_place = 0
        CHECK: func.func private @{{d[0-9]+}}_scatter{{.*}}llmos.in_place = 0
        """,
    )


def test_the_write_is_moved_behind_the_last_reader_of_the_old_value() -> None:
    def function(cache: torch.Tensor, row: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        before = cache.clone()
        cache.index_copy_(0, at, row)
        return before @ before.T

    check(
        placed(function, CACHE, ROW, AT),
        """
        CHECK: call @{{d[0-9]+}}_contraction(%arg0
        CHECK: call @{{d[0-9]+}}_scatter(%arg0{{.*}}llmos.within = 0
        CHECK-NEXT: return
        """,
    )


def test_a_result_that_needs_the_old_and_the_new_value_is_made_elsewhere() -> None:
    def function(cache: torch.Tensor, row: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        before = cache.clone()
        cache.index_copy_(0, at, row)
        return cache @ before.T

    check(placed(function, CACHE, ROW, AT), "CHECK-NOT: llmos.within")


def test_an_elementwise_update_is_made_elsewhere() -> None:
    """Vectors of a kernel may reach over one another: it may not read what it has written."""

    def function(cache: torch.Tensor) -> torch.Tensor:
        cache.add_(1)
        return cache.sum()

    check(placed(function, CACHE), "CHECK-NOT: llmos.within")


def test_what_takes_the_place_of_all_of_an_input_needs_no_copy() -> None:
    def function(cache: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        cache.copy_(other * 2)
        return other + 1

    check(placed(function, CACHE, CACHE), "CHECK: call @{{d[0-9]+}}_elementwise(%arg1){{.*}}llmos.within = 0")


def test_a_source_in_the_written_array_is_read_first() -> None:
    def function(cache: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        cache.index_copy_(0, at, cache[3:4])
        return at + 1

    check(placed(function, CACHE, AT), "CHECK-NOT: llmos.in_place")


def test_a_returned_new_value_is_copied_from_the_input() -> None:
    def function(cache: torch.Tensor, row: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return cache.index_copy_(0, at, row)

    check(
        placed(function, CACHE, ROW, AT),
        """
        CHECK: %[[new:.*]] = call @{{d[0-9]+}}_scatter(%arg0{{.*}}llmos.within = 0
        CHECK: %[[copy:.*]] = call @{{d[0-9]+}}_elementwise(%[[new]])
        CHECK: return %[[copy]], %[[new]]
        """,
    )


def test_a_slice_is_inserted_into_the_input() -> None:
    def function(cache: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        cache[2:3] = row
        cache[-1] = row[0]
        return row + 1

    check(
        placed(function, CACHE, ROW),
        """
        CHECK: call @{{d[0-9]+}}_fallback(%arg1, %arg0){{.*}}llmos.within = 0
        CHECK: call @{{d[0-9]+}}_fallback({{.*}}llmos.within = 0
        CHECK: func.func private {{.*}}llmos.dispatch = "insert", llmos.in_place = 1
        CHECK: func.func private {{.*}}llmos.dispatch = "insert", llmos.in_place = 1
        """,
    )


def test_a_slice_with_steps_is_made_elsewhere() -> None:
    def function(cache: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        cache[::2] = row
        return row + 1

    check(placed(function, CACHE, ROW), "CHECK-NOT: llmos.within")
