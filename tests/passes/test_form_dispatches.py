"""form-dispatches: what runs together, and what must not."""

from __future__ import annotations

import pytest
import torch

from llmos.compiler.ir.bindings import ir
from llmos.passes import Upstream
from llmos.passes.channels_last import ChannelsLast
from llmos.passes.form_dispatches import FormDispatches
from llmos.passes.recognize_attention import RecognizeAttention

from .ir_tests import apply, check, functions, generics, kinds, parse

F = torch.nn.functional
X = torch.randn(3, 24)
W = torch.randn(24, 24)


def formed(function: object, *inputs: torch.Tensor, weights: tuple[torch.Tensor, ...] = ()) -> ir.Module:
    return apply(generics(function, *inputs, weights=weights), RecognizeAttention(), FormDispatches())


def test_a_contraction_takes_its_epilogue() -> None:
    module = formed(lambda w, b, x: torch.relu(x @ w + b), X, weights=(W, torch.randn(24)))
    check(
        module,
        """
        CHECK: func.func @main
        CHECK: %[[Y:.*]] = call @d0_contraction({{.*}}llmos.shapes = {{\\[\\[}}"batch", 24]]
        CHECK-NEXT: return %[[Y]]
        CHECK: func.func private @d0_contraction{{.*}}llmos.dispatch = "contraction"
        CHECK: arith.mulf
        CHECK: arith.addf
        CHECK: arith.addf
        CHECK: arith.maximumf
        """,
    )


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: torch.softmax(x, -1), ["row_reduction"]),
        (lambda x: F.layer_norm(torch.exp(x), (24,)) + x, ["row_reduction"]),
        (lambda x: torch.sin(torch.exp(x) * x) + x, ["elementwise"]),
        (lambda x: torch.exp(x) * torch.sin(x), ["elementwise"]),  # chains that meet
        (lambda x: torch.exp(x) * torch.sin(x).sum(0), ["elementwise", "elementwise"]),
        (lambda x: x.sum(0), ["elementwise"]),
        (lambda x: x.t(), ["elementwise"]),  # free to read, written because it is returned
        (lambda x: (x.t() * 2 + 1).sum(0), ["elementwise"]),  # cheap: computed where it is read
        (lambda x: x @ x.t(), ["contraction"]),
        (lambda x: torch.softmax(x @ x.t(), -1), ["contraction", "row_reduction"]),
        (lambda x: torch.sort(x.exp(), -1)[0], ["elementwise", "sort"]),  # the keys are made where they are read
        (lambda x: (torch.topk(x, 3)[1] * 2).abs(), ["sort", "elementwise"]),
        (lambda x: x.cumsum(-1) * 2, ["scan"]),
        (lambda x: F.scaled_dot_product_attention(*[x.unflatten(-1, (2, 12)).transpose(0, 1)] * 3), ["attention"]),
    ],
)
def test_kinds(function: object, expected: list[str]) -> None:
    assert kinds(formed(function, X)) == expected


def test_an_epilogue_that_leaks_is_given_back() -> None:
    """The product is an output: what follows it would make the contraction write it twice over."""
    module = formed(lambda w, x: (x @ w, torch.exp(x @ w)), X, weights=(W,))
    assert kinds(module) == ["contraction", "elementwise"]
    check(
        module,
        """
        CHECK: func.func private @d0_contraction
        CHECK-NOT: math.exp
        CHECK: func.func private @d1_elementwise
        CHECK: math.exp
        """,
    )


def test_an_epilogue_never_closes_a_cycle() -> None:
    """y + softmax(y): the sum needs the row kernel, which needs the product."""
    module = formed(lambda w, x: (x @ w) * 2 + torch.softmax((x @ w) * 2, -1), X, weights=(W,))
    assert kinds(module) == ["contraction", "row_reduction"]


def test_elementwise_chains_never_close_a_cycle() -> None:
    """exp(x) and the last sum can't be one dispatch: the product stands between them."""

    def between(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        e = torch.exp(x)
        return torch.sin(e) + torch.log((e @ w) @ w)

    found = kinds(formed(between, X, weights=(W,)))
    assert found.count("contraction") == 2
    assert found.index("elementwise") < found.index("contraction")


def test_each_output_has_memory_of_its_own() -> None:
    """Returned inputs, and values returned twice (one behind a view), are copied."""
    text = """module attributes {llmos.symbols = {n = array<i64: 1, 64>}} {
      func.func @main(%x: tensor<?x2xf32> {llmos.kind = "input", llmos.name = "x", llmos.dtype = "float32", llmos.shape = ["n", 2]})
          -> (tensor<?x2xf32>, tensor<?x2xf32>, tensor<?xf32>) {
        %c0 = arith.constant 0 : index
        %n = tensor.dim %x, %c0 : tensor<?x2xf32>
        %e = tensor.empty(%n) : tensor<?x2xf32>
        %y = linalg.generic {indexing_maps = [affine_map<(i, j) -> (i, j)>, affine_map<(i, j) -> (i, j)>],
            iterator_types = ["parallel", "parallel"]}
            ins(%x : tensor<?x2xf32>) outs(%e : tensor<?x2xf32>) {
        ^bb0(%a: f32, %o: f32):
          %s = math.exp %a : f32
          linalg.yield %s : f32
        } -> tensor<?x2xf32>
        %v = tensor.collapse_shape %y [[0, 1]] : tensor<?x2xf32> into tensor<?xf32>
        return %x, %y, %v : tensor<?x2xf32>, tensor<?x2xf32>, tensor<?xf32>
      }
    }"""
    module = apply(parse(text), FormDispatches())
    main = functions(module)[0].regions[0].blocks[0]
    returned = list(list(main.operations)[-1].operands)
    assert all(value.owner.name == "func.call" for value in returned)
    calls = [value.owner for value in returned]
    assert len({str(value) for value in returned}) == 3
    assert len(calls) == 3


def test_keys_that_are_computed_are_written_first() -> None:
    """The attention kernel reads K and V in place; even a cheap op on the way to them is a dispatch."""
    q, k = torch.randn(2, 4, 5, 16), torch.randn(2, 4, 7, 16)
    assert kinds(formed(lambda q, k: F.scaled_dot_product_attention(q * 2, k * 2, k), q, k)) == ["elementwise", "attention"]


def test_results_of_one_loop_space_have_one_shape() -> None:
    """A column sum, and the same transposed: two dispatches, though either is a fine epilogue alone."""
    x = torch.randn(3, 5, 7)
    module = formed(lambda x: (x.sum(1).exp(), x.sum(1).sin().t()), x)
    for func in functions(module)[1:]:
        kind = ir.FunctionType(ir.TypeAttr(func.attributes["function_type"]).value)
        assert len({str(result) for result in kind.results}) == 1


def images(function: object, size: int) -> list[str]:
    """Kinds of the dispatches behind a 1x1 convolution of an image [n, size, size, 24], channels innermost, to 40 channels."""
    wide, deep = torch.randn(40, 24, 1, 1), torch.randn(40, 1, 3, 3)

    def moved(x: torch.Tensor) -> object:
        made = function(F.relu(F.conv2d(x.movedim(-1, 1), wide)), deep)  # type: ignore[operator]
        return tuple(y.movedim(1, -1).contiguous() for y in (made if isinstance(made, tuple) else (made,)))

    module = generics(moved, torch.randn(3, size, size, 24))
    return kinds(apply(module, ChannelsLast(), Upstream("canonicalize"), Upstream("cse"), FormDispatches()))


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda y, w: F.relu(F.conv2d(y, w, stride=2, padding=1, groups=40)), ["contraction_window"]),
        (lambda y, _: F.max_pool2d(y, 3, 2, 1) * 2, ["contraction_window"]),
        (lambda y, w: (y, F.conv2d(y, w, groups=40)), ["contraction", "elementwise"]),  # the image is an output
        (lambda y, w: F.conv2d(y, w, groups=40) + y[:, :, 1:-1, 1:-1], ["contraction", "elementwise"]),  # read in another way as well
        (lambda y, w: F.conv2d(F.pad(y, (1, 1, 1, 1), value=1.0), w, groups=40), ["contraction", "elementwise"]),  # ones count in a sum
        (lambda y, _: y.mean((2, 3)).unsqueeze(-1), ["contraction", "elementwise"]),
    ],
)
def test_windows_that_slide_over_what_a_contraction_makes(function: object, expected: list[str]) -> None:
    assert images(function, 20) == expected


def test_bands_that_would_overlap_by_much() -> None:
    """A level-2 cache holds the rows that few windows of 13 rows read, or all of a small image."""
    assert images(lambda y, _: F.max_pool2d(y, 13, 1), 20) == ["contraction_window"]
    assert images(lambda y, _: F.max_pool2d(y, 13, 1), 200) == ["contraction", "elementwise"]


def test_a_sort_of_which_one_range_is_read_finds_only_that() -> None:
    module = formed(lambda x: sum(torch.topk(x, 3, -1)), X)
    check(
        module,
        """
        CHECK: func.func private @d0_sort
        CHECK: arith.bitcast
        CHECK: tm_tensor.sort
        CHECK: tensor.extract_slice
        CHECK: tensor.extract_slice
        CHECK: func.func private @d1_elementwise
        """,
    )


def test_a_sort_that_is_read_whole_as_well() -> None:
    def two_ranges(x: torch.Tensor) -> torch.Tensor:
        values = x.sort(-1)[0]
        return values[:, :2].sum(-1) + values.sum(-1)

    module = formed(two_ranges, X)
    sort = next(op for op in functions(module) if "sort" in str(op.attributes["sym_name"]))
    assert "extract_slice" not in str(sort)
