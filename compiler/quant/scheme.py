"""Schemes of quantization: the text of `--quant`, such as "w8a8" or "w4a16:g128:gptq".

    scheme   = "auto" | numbers *(":" option)
    numbers  = "w8a8" | "w8a8-static" | "w8a16" | "fp8" | "w4a8" | "w4a16"
    option   = "g" size | "gptq" | "awq" | "smooth" | "cle"

`w8a8` holds weights and activations in 8 bits; scales of activations follow from each row at run time, with `-static` from calibration.
`a16` leaves activations as they are, and so does `fp8`, weights in 8 bits of floating point (E4M3). `g128` gives each 128 weights along the
sums a scale of their own; `w4a8` without a size is for models that store weights in 4 bits, which stay as they are, as what is in float
does. `gptq` and `awq` say how weights are rounded; without either, to nearest. `smooth` moves outliers of activations into weights, by
calibration (SmoothQuant), and so does `w8a8:gptq`. `cle` evens out the channels between two products (cross-layer equalization). `auto` is
`w8a8:gptq` with corrected products and a plan of those that stay in float; without data its weights are rounded to nearest.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass

from llmos.runtime.errors import UserError

AUTO = "auto"
STATIC = "w8a8-static"
FP8 = "fp8"
GROUPED = ("w4a8", "w4a16")  # their weights have scales in groups
KEPT = "w4a8"  # also of the weights alone that a model stores in 4 bits
NUMBERS = ("w8a8", STATIC, "w8a16", FP8, *GROUPED)
ROUNDINGS = {"w8a8": ("gptq",), **dict.fromkeys(GROUPED, ("gptq", "awq"))}  # better than to nearest
SMOOTH = "smooth"
EQUALIZED = "cle"
SMOOTHED = ("w8a8",)  # their activations may be smoothed
GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class Scheme:
    """One scheme. numbers: bits of weights and activations; group: size, 0 for one scale a channel; rounding: "" for nearest.

    is_smoothed: whether outliers of activations move into weights. is_equalized: whether channels between products are evened out.
    """

    numbers: str
    group: int = 0
    rounding: str = ""
    is_smoothed: bool = False
    is_equalized: bool = False

    @property
    def has_quantized_activations(self) -> bool:
        """Return whether activations are rounded to integers."""
        return self.numbers != FP8 and not self.numbers.endswith("a16")

    def __str__(self) -> str:
        options = (
            f"g{self.group}" if self.group else "",
            self.rounding,
            SMOOTH if self.is_smoothed else "",
            EQUALIZED if self.is_equalized else "",
        )
        return ":".join(filter(None, (self.numbers, *options)))


def parse_scheme(text: str) -> Scheme:
    """Parse a scheme. Raises UserError, with the nearest schemes, for text that is none."""
    numbers, *options = text.split(":")
    groups = [int(found[1]) for each in options if (found := re.fullmatch(r"g([1-9]\d{0,6})", each))]
    roundings = [each for each in options if each in ROUNDINGS["w4a16"]]
    smooth, equalized = options.count(SMOOTH), options.count(EQUALIZED)
    is_known = numbers in (AUTO, *NUMBERS) and len(groups) + len(roundings) + smooth + equalized == len(options)
    if not is_known or max(len(groups), len(roundings), smooth, equalized) > 1:
        raise UserError(_unknown(text))
    scheme = Scheme(numbers, sum(groups), "".join(roundings), bool(smooth), bool(equalized))
    if numbers in GROUPED and scheme.group not in GROUPS and scheme != Scheme(KEPT):
        raise UserError(f"--quant {text}: say how many weights share a scale, {numbers}:g32, :g64 or :g128")
    if (
        (scheme.group and numbers not in GROUPED)
        or (scheme.rounding and scheme.rounding not in ROUNDINGS.get(numbers, ()))
        or (scheme.is_smoothed and (numbers not in SMOOTHED or scheme.rounding))
        or (scheme.is_equalized and numbers != STATIC)
    ):
        raise UserError(_unknown(text))
    return scheme


def schemes() -> list[str]:
    """Every scheme."""
    grouped = [f"{numbers}:g{group}" for numbers in GROUPED for group in GROUPS]
    rounded = [f"{each}:{rounding}" for each in ("w8a8", *grouped) for rounding in ROUNDINGS[each.split(":")[0]]]
    smoothed = [f"{numbers}:{SMOOTH}" for numbers in SMOOTHED]
    return [*(each for each in NUMBERS if each not in GROUPED), KEPT, *smoothed, f"{STATIC}:{EQUALIZED}", *grouped, *rounded, AUTO]


def _unknown(text: str) -> str:
    close = difflib.get_close_matches(text.strip().lower(), schemes(), n=3)
    hint = (
        f"did you mean {', '.join(close)}?"
        if close
        else f"choose from {', '.join(each for each in schemes() if ':' not in each)}, w4a16:g128"
    )
    return f"--quant has no scheme {text!r}; {hint}"
