"""A pipeline's text: names, options, nesting, and what is said about mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from llmos.compiler.ir.bindings import context, ir
from llmos.passes import Pass, PassContext, Upstream, parse_pipeline, pipeline_text, run_pipeline
from llmos.passes._options import options_text, parse_options
from llmos.runtime.errors import UserError


@dataclass(frozen=True)
class Sample(Pass):
    max_rank: int = 2
    ratio: float = 0.5
    deep: bool = False
    sizes: tuple[int, ...] = ()
    order: Literal["row", "column"] = "row"
    note: str | None = None

    def run(self, module: ir.Module, context: PassContext) -> None:
        pass


def sample(text: str) -> Sample:
    return Sample(**parse_options(Sample, "sample", text))


def test_options_are_typed_by_the_fields() -> None:
    parsed = sample("max-rank=3 ratio=1e-3 deep=true sizes=8,16 order=column note=x")
    assert parsed == Sample(3, 1e-3, True, (8, 16), "column", "x")
    assert sample(options_text(parsed)) == parsed


def test_options_may_be_separated_by_commas_and_a_bare_flag_is_true() -> None:
    assert sample("max_rank=3,sizes=1,2,order=column") == Sample(max_rank=3, sizes=(1, 2), order="column")
    assert sample("deep max_rank=3") == Sample(max_rank=3, deep=True)


def test_a_pass_prints_what_differs_from_its_defaults() -> None:
    assert str(Sample()) == "sample"
    assert str(Sample(deep=True, sizes=(4, 8))) == "sample{deep=true sizes=4,8}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-rnk=3", "no option 'max-rnk'; did you mean max_rank"),
        ("max-rank=three", "option max-rank: 'three' is not an integer"),
        ("ratio=half", "option ratio: 'half' is not a number"),
        ("deep=maybe", "option deep: 'maybe' is none of"),
        ("order=diagonal", "'diagonal' is none of column, row"),
    ],
)
def test_bad_options_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(text)


def test_text_and_passes_are_inverse() -> None:
    text = "linalg-fuse-elementwise-ops,arith-expand{include-bf16=true},func.func(tosa-to-linalg)"
    passes = parse_pipeline(text)
    assert passes[1] == Upstream("arith-expand", "include-bf16=true")
    assert passes[2] == Upstream("tosa-to-linalg", anchor="func.func")
    assert pipeline_text(passes) == text


def test_mlir_s_own_nesting_is_read() -> None:
    passes = parse_pipeline("builtin.module(func.func(canonicalize, cse), symbol-dce)")
    assert [str(step) for step in passes] == ["func.func(canonicalize)", "func.func(cse)", "symbol-dce"]


def test_an_unknown_pass_lists_the_nearest_names() -> None:
    with pytest.raises(UserError, match=r"no pass is called 'linalg-fuse-elementwise'; did you mean .*linalg-fuse-elementwise-ops"):
        parse_pipeline("canonicalize,linalg-fuse-elementwise")


@pytest.mark.parametrize("text", ["canonicalize,", "canonicalize{", "canonicalize cse", "(cse)", ",cse"])
def test_text_that_is_no_pipeline(text: str) -> None:
    with pytest.raises(UserError, match="not a pipeline"):
        parse_pipeline(text)


def test_an_upstream_option_that_mlir_does_not_know() -> None:
    with pytest.raises(UserError, match="no such option foo"):
        parse_pipeline("arith-expand{foo=1}")


def test_upstream_passes_run_on_functions_where_they_must() -> None:
    with context():
        module = ir.Module.parse(
            "func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {\n"
            " %r = tosa.clamp %a {min_val = 0.0 : f32, max_val = 6.0 : f32} : (tensor<4xf32>) -> tensor<4xf32>\n"
            " return %r : tensor<4xf32>\n}"
        )
    run_pipeline(module, "tosa-to-linalg")
    assert "tosa" not in str(module)
