"""LLVM IR text from the newer LLVM of the MLIR wheel, rewritten for the older LLVM inside llvmlite.

LLVM 24 prints floating-point literals in a syntax that LLVM 22 can't read: `float 1.000000e-01` (rounded to the type), `float
f0x4B800000` (bits), `+inf`, `-qnan`, `+nan(0x1)`, `+snan(0x1)`. LLVM 22 wants decimals that are exact, or bits: `0x` and 16 digits of a
double for float and double, `0xH` and 4 digits for half, `0xR` and 4 digits for bfloat. Everything is written as bits here, so no digit
is lost.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class _Format:
    """An IEEE-754 binary interchange format (or bfloat16): `significand_bits` counts the hidden bit."""

    total_bits: int
    significand_bits: int
    prefix: str

    @property
    def mantissa_bits(self) -> int:
        return self.significand_bits - 1

    @property
    def exponent_bits(self) -> int:
        return self.total_bits - self.significand_bits

    @property
    def bias(self) -> int:
        return (1 << (self.exponent_bits - 1)) - 1

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits


_DOUBLE = _Format(64, 53, "0x")
_FORMATS = {"half": _Format(16, 11, "0xH"), "bfloat": _Format(16, 8, "0xR"), "float": _Format(32, 24, "0x"), "double": _DOUBLE}

# Names and strings come first, so that `%float` or a constant string is never taken for a type or a number. A decimal has a point.
_TOKEN = re.compile(
    r'(?P<skip>[%@!#$][-\w.$]+|[%@]?"[^"]*")'
    r"|\b(?P<type>half|bfloat|float|double)\b"
    r"|(?<![\w.])(?P<number>f0x[0-9A-Fa-f]+|[+-](?:inf\b|qnan\b|s?nan\(0x[0-9A-Fa-f]+\))|-?\d+\.\d+(?:e[+-]?\d+)?)"
)
_NEW_LITERAL = re.compile(r"f0x|[+-](?:inf|qnan|s?nan\()|\d\.\d")


def for_llvm_22(text: str) -> str:
    """The same module with every floating-point literal in the syntax of LLVM 22."""
    return "\n".join(_rewritten_lines(text)) + "\n"


def _rewritten_lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield _rewrite_line(line) if _NEW_LITERAL.search(line) else line


def _rewrite_line(line: str) -> str:
    """A literal takes the last floating-point type named before it: `fadd float %x, 1.0`, `<2 x half> <half 1.0, half 2.0>`."""
    pieces: list[str] = []
    end, current = 0, ""
    for match in _TOKEN.finditer(line):
        if match["type"]:
            current = match["type"]
        elif match["number"] and current:
            pieces += [line[end : match.start()], _literal(match["number"], _FORMATS[current])]
            end = match.end()
    return "".join([*pieces, line[end:]])


def _literal(text: str, fmt: _Format) -> str:
    bits = _bits(text, fmt)
    if fmt.prefix == "0x":
        return f"0x{_extend(bits, fmt):016X}"
    return f"{fmt.prefix}{bits:04X}"


def _bits(text: str, fmt: _Format) -> int:
    """The bit pattern of a literal in `fmt`."""
    if text.startswith("f0x"):
        return int(text[3:], 16)
    sign = int(text[0] == "-") << (fmt.total_bits - 1)
    body = text.lstrip("+-")
    quiet = 1 << (fmt.mantissa_bits - 1)
    if body == "inf":
        return sign | fmt.infinity
    if body == "qnan":
        return sign | fmt.infinity | quiet
    if "nan(" in body:
        payload = int(body[body.index("(") + 1 : -1], 16)
        return sign | fmt.infinity | payload | (0 if body.startswith("s") else quiet)
    return sign | _nearest(Fraction(body), fmt)


def _nearest(value: Fraction, fmt: _Format) -> int:
    """Bits of the number nearest to `value` >= 0, ties to even. The text comes from such a number, so it doesn't overflow."""
    if value == 0:
        return 0
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    if value < Fraction(2) ** exponent:
        exponent -= 1
    exponent = max(exponent, 1 - fmt.bias)
    mantissa = round(value / Fraction(2) ** (exponent - fmt.mantissa_bits))
    # The hidden bit adds one to the exponent field; a subnormal has none, and a mantissa rounded up to a power of two carries by itself.
    return ((exponent + fmt.bias - 1) << fmt.mantissa_bits) + mantissa


def _extend(bits: int, fmt: _Format) -> int:
    """Bits of the same value as a double; a NaN keeps its payload and its signaling bit, which a conversion by the processor would not."""
    sign = bits >> (fmt.total_bits - 1)
    magnitude = bits & ((1 << (fmt.total_bits - 1)) - 1)
    shift = _DOUBLE.mantissa_bits - fmt.mantissa_bits
    if magnitude >= fmt.infinity:
        wide = _DOUBLE.infinity | ((magnitude - fmt.infinity) << shift)
    else:
        field, mantissa = magnitude >> fmt.mantissa_bits, magnitude & ((1 << fmt.mantissa_bits) - 1)
        exponent = max(field, 1) - fmt.bias - fmt.mantissa_bits
        significand = mantissa | (int(field > 0) << fmt.mantissa_bits)
        wide = _nearest(significand * Fraction(2) ** exponent, _DOUBLE)
    return (sign << 63) | wide
