"""The text of `--quant`."""

from __future__ import annotations

import pytest

from llmos.compiler.quant.scheme import Scheme, parse_scheme, schemes
from llmos.runtime.errors import UserError


@pytest.mark.parametrize("text", schemes())
def test_every_scheme_is_read_as_it_is_written(text: str) -> None:
    assert str(parse_scheme(text)) == text


def test_what_a_scheme_says() -> None:
    assert parse_scheme("w8a8") == Scheme("w8a8")
    assert parse_scheme("w4a16:g128:gptq") == Scheme("w4a16", 128, "gptq")
    assert parse_scheme("w4a8") == Scheme("w4a8")
    assert parse_scheme("w8a8:gptq") == Scheme("w8a8", rounding="gptq")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w8a9", "--quant has no scheme 'w8a9'; did you mean w8a8"),
        ("W8A8", "did you mean w8a8, "),
        ("int8", "choose from w8a8, "),
        ("", "choose from"),
        ("w8a8:g128", "did you mean"),
        ("w8a16:gptq", "did you mean"),
        ("w4a16:g128:g64", "did you mean"),
        ("w4a16:g128:gptq:awq", "did you mean"),
        ("w4a16", "say how many weights share a scale, w4a16:g32, :g64 or :g128"),
        ("w8a8:smooth:smooth", "did you mean w8a8:smooth"),
        ("w8a8-static:smooth", "did you mean"),
        ("w8a8:cle", "did you mean"),
        ("w8a8:awq", "did you mean"),
        ("w8a8:smooth:gptq", "did you mean"),
        ("w8a8-static:gptq", "did you mean"),
        ("fp8:g32", "did you mean"),
        ("auto:smooth", "did you mean"),
        ("w4a8:g0", "did you mean"),
        ("w4a8:gptq", "say how many weights share a scale"),
        ("w4a8:g16", "say how many weights share a scale"),
        ("w4a16:g100", "say how many weights share a scale"),
        ("w4a16:g0", "did you mean"),
    ],
)
def test_what_is_none_is_refused_in_a_line(text: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_scheme(text)
    assert message in str(error.value) and "\n" not in str(error.value)
