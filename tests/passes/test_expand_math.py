"""expand-math: our functions against float64 references over the whole range of floats, the same bits at every vector width, no libm."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import llvmlite.binding as llvmlite
import numpy as np
import pytest
import torch

from llmos.compiler.backends.cpu.target import TARGETS, CpuTarget
from llmos.compiler.codegen.link import link_shared
from llmos.compiler.codegen.llvm import compile_object
from llmos.compiler.codegen.lowering import lower_to_llvm_dialect, to_llvm_ir
from llmos.compiler.ir.bindings import context, ir
from llmos.passes import PassContext
from llmos.passes.expand_math import ExpandMath
from llmos.runtime.artifact.bfloat16 import from_bfloat16
from llmos.runtime.errors import UnsupportedError

Array = np.ndarray
DTYPES = {"f16": "float16", "bf16": "uint16", "f32": "float32", "f64": "float64", "i32": "int32", "i64": "int64"}
WIDTHS = (16, 0, 3)  # 0: scalars
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, -2.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.1754944e-38, 1e-40, 3.4028235e38, -3.4028235e38]
    + [
        88.72283,
        88.72284,
        -87.33,
        -104.0,
        128.0,
        -126.0,
        -149.0,
        1e-8,
        -1e-8,
        16777216.0,
        8388607.5,
        0.99999994,
        1.0000001,
        1.5707964,
        1e10,
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class Kernel:
    """`operation` with {0}, {1} for its operands, {T} and {O} for the types, over arrays; or several, the last one of %y."""

    name: str
    operation: str
    inputs: tuple[str, ...]
    output: str
    width: int

    def source(self) -> str:
        def vector(element: str) -> str:
            return f"vector<{self.width}x{element}>" if self.width else element

        loads = "".join(
            f"%p{i} = llvm.getelementptr %a{i}[%k] : (!llvm.ptr, i64) -> !llvm.ptr, {t}\n"
            f"%x{i} = llvm.load %p{i} {{alignment = 1 : i64}} : !llvm.ptr -> {vector(t)}\n"
            for i, t in enumerate(self.inputs)
        )
        types = {"T": vector(self.inputs[0]), "T1": vector(self.inputs[-1]), "O": vector(self.output)}
        arguments = "".join(f"%a{i}: !llvm.ptr, " for i in range(len(self.inputs)))
        operation = self.operation.format(*(f"%x{i}" for i in range(len(self.inputs))), **types)
        operation = operation if "%y =" in operation else f"%y = {operation}"
        return f"""
        func.func @__llmos_{self.name}_{self.width}({arguments}%o: !llvm.ptr, %n: i64) {{
          %start = arith.constant 0 : index
          %step = arith.constant {max(self.width, 1)} : index
          %end = arith.index_cast %n : i64 to index
          scf.for %i = %start to %end step %step {{
            %k = arith.index_cast %i : index to i64
            {loads}
            {operation}
            %po = llvm.getelementptr %o[%k] : (!llvm.ptr, i64) -> !llvm.ptr, {self.output}
            llvm.store %y, %po {{alignment = 1 : i64}} : {vector(self.output)}, !llvm.ptr
          }}
          return
        }}"""


@dataclass
class Library:
    """Compiled kernels: `library.run("exp", x)` on 16 lanes, or another width."""

    code: ctypes.CDLL
    outputs: dict[str, str] = field(default_factory=dict)

    def run(self, name: str, *inputs: Array, width: int = 16) -> Array:
        length = len(inputs[0])
        assert length % max(width, 1) == 0
        out = np.zeros(length, DTYPES[self.outputs[name]])
        arguments = [ctypes.c_void_p(array.ctypes.data) for array in (*inputs, out)]
        getattr(self.code, f"__llmos_{name}_{width}")(*arguments, ctypes.c_int64(length))
        return out


def runnable_targets() -> list[CpuTarget]:
    available = llvmlite.get_host_cpu_features()
    arch = llvmlite.get_process_triple().split("-")[0]
    return [t for t in TARGETS if t.arch == arch and all(available.get(feature, t.arch == "aarch64") for feature in t.required)]


def llvm_text(source: str) -> str:
    with context(), ir.Location.unknown():
        module = ir.Module.parse(source)
        ExpandMath().run(module, PassContext())
        assert module.operation.verify()
        lower_to_llvm_dialect(module)
        return to_llvm_ir(module)


def build(kernels: Sequence[Kernel], target: CpuTarget, folder: Path) -> Library:
    text = llvm_text("\n".join(kernel.source() for kernel in kernels))
    path = folder / f"{target.name}.so"
    path.write_bytes(link_shared([compile_object(text, target)]))
    return Library(ctypes.CDLL(str(path)), {kernel.name: kernel.output for kernel in kernels})


def with_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Array], Array]:
    return lambda x: function(torch.from_numpy(x)).numpy()


@dataclass(frozen=True)
class Case:
    """A function of one float: its float64 reference, where to look closely, its bound in ulp."""

    reference: Callable[[Array], Array]
    ulps: float
    ranges: tuple[tuple[float, float], ...]


UNARY = {
    "exp": Case(np.exp, 1.5, ((-90, 90), (-2, 2))),
    "exp2": Case(np.exp2, 1.5, ((-130, 130), (-2, 2))),
    "expm1": Case(np.expm1, 2.0, ((-20, 90), (-1, 1))),
    "sinh": Case(np.sinh, 2.0, ((-90, 90), (-2, 2))),
    "cosh": Case(np.cosh, 2.0, ((-90, 90), (-2, 2))),
    "tanh": Case(np.tanh, 2.0, ((-10, 10), (-1, 1))),
    "log": Case(np.log, 1.5, ((0, 3), (0.5, 1.5))),
    "log2": Case(np.log2, 2.0, ((0, 3), (0.5, 1.5))),
    "log10": Case(np.log10, 2.0, ((0, 3), (0.5, 1.5))),
    "log1p": Case(np.log1p, 1.5, ((-1, 3), (-0.1, 0.1))),
    "asinh": Case(np.arcsinh, 2.0, ((-5, 5),)),
    "acosh": Case(np.arccosh, 3.0, ((1, 5), (1, 1.1))),
    "atanh": Case(np.arctanh, 2.0, ((-1, 1),)),
    "sin": Case(np.sin, 2.0, ((-10, 10), (-1e5, 1e5))),
    "cos": Case(np.cos, 2.0, ((-10, 10), (-1e5, 1e5))),
    "tan": Case(np.tan, 4.0, ((-10, 10), (-1e5, 1e5))),
    "asin": Case(np.arcsin, 2.5, ((-1, 1),)),
    "acos": Case(np.arccos, 2.0, ((-1, 1),)),
    "atan": Case(np.arctan, 1.5, ((-5, 5),)),
    "erf": Case(with_torch(torch.special.erf), 1.5, ((-5, 5), (-1, 1))),
    "erfc": Case(with_torch(torch.special.erfc), 4.0, ((-5, 11), (-1, 1))),
    "cbrt": Case(np.cbrt, 0.51, ((-9, 9),)),
    "rsqrt": Case(lambda x: 1.0 / np.sqrt(x), 1.5, ((0, 9),)),
    "sqrt": Case(np.sqrt, 0.501, ((0, 4),)),
    "floor": Case(np.floor, 0.0, ((-4, 4),)),
    "ceil": Case(np.ceil, 0.0, ((-4, 4),)),
    "trunc": Case(np.trunc, 0.0, ((-4, 4),)),
    "round": Case(lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x), 0.0, ((-5, 5),)),
    "roundeven": Case(np.rint, 0.0, ((-5, 5),)),
}
FLUSHED = {"exp", "exp2"}  # results below 2^-125.5 are 0

BINARY = {"powf": "math.powf", "atan2": "math.atan2", "remf": "arith.remf"}
DOUBLE = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "erf": with_torch(torch.special.erf),
}


def kernels() -> list[Kernel]:
    found = []
    for width in WIDTHS:
        found += [Kernel(name, f"math.{name} {{0}} : {{T}}", ("f32",), "f32", width) for name in UNARY]
        found += [Kernel(name, f"{op} {{0}}, {{1}} : {{T}}", ("f32", "f32"), "f32", width) for name, op in BINARY.items()]
    found += [Kernel(f"{name}_f64", f"math.{name} {{0}} : {{T}}", ("f64",), "f64", 16) for name in DOUBLE]
    found += [Kernel(f"{name}_f64", f"{op} {{0}}, {{1}} : {{T}}", ("f64", "f64"), "f64", 16) for name, op in BINARY.items()]
    for kind in ("f32", "f64"):
        found.append(Kernel(f"to_bf16_{kind}", "arith.truncf {0} : {T} to {O}", (kind,), "bf16", 16))
        found.append(Kernel(f"to_f16_{kind}", "arith.truncf {0} : {T} to {O}", (kind,), "f16", 16))
    one = "%e = math.erf {0} : {T}\n%one = arith.constant dense<1.0> : {T}\n"
    found.append(Kernel("one_plus_erf", f"{one}%y = arith.addf %one, %e : {{T}}", ("f32",), "f32", 16))
    both = "%s = arith.addf %e, %one : {T}\n%y = arith.subf %s, %e : {T}"
    found.append(Kernel("erf_read_twice", one + both, ("f32",), "f32", 16))
    found.append(Kernel("from_bf16", "arith.extf {0} : {T} to {O}", ("bf16",), "f32", 16))
    found.append(Kernel("add_bf16", "arith.addf {0}, {1} : {T}", ("bf16", "bf16"), "bf16", 16))
    found.append(Kernel("tanh_f16", "math.tanh {0} : {T}", ("f16",), "f16", 16))
    found.append(Kernel("ipowi", "math.ipowi {0}, {1} : {T}", ("i32", "i32"), "i32", 16))
    found.append(Kernel("fpowi", "math.fpowi {0}, {1} : {T}, {T1}", ("f32", "i32"), "f32", 16))
    return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    targets = runnable_targets()
    if not targets:
        pytest.skip("this machine runs none of the targets")
    return build(kernels(), targets[-1], tmp_path_factory.mktemp("code"))


def floats(ranges: Sequence[tuple[float, float]], count: int = 60_000) -> Array:
    """Special values, random bit patterns and uniform numbers of each range; the length is a multiple of 48."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    parts = [SPECIAL, patterns, *(rng.uniform(low, high, count).astype(np.float32) for low, high in ranges)]
    joined = np.concatenate(parts)
    return joined[: len(joined) // 48 * 48].copy()


@np.errstate(all="ignore")
def pairs() -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    x = np.concatenate([np.repeat(SPECIAL, len(SPECIAL)), floats(((0, 3), (-4, 4), (0.99, 1.01)))])
    rest = [
        rng.permutation(floats(())),
        rng.uniform(-150, 150, 60_000),
        np.rint(rng.uniform(-40, 40, 60_000)),
        rng.uniform(-9000, 9000, 70_000),
    ]
    y = np.concatenate([np.tile(SPECIAL, len(SPECIAL)), *rest]).astype(np.float32)
    length = min(len(x), len(y)) // 48 * 48
    return x[:length].copy(), y[:length].copy()


def ulp_errors(got: Array, reference: Array) -> Array:
    """Distance from a float64 reference in units of the last place of float32; infinite where NaN or infinity is wrong."""
    exponent = np.clip(np.floor(np.log2(np.maximum(np.abs(reference), 2.0**-126))), -126, 127)
    error = np.abs(got.astype(np.float64) - reference) / 2.0 ** (exponent - 23)
    agrees = (reference.astype(np.float32) == got) | (np.isnan(reference) & np.isnan(got))
    error = np.where(agrees, np.minimum(np.nan_to_num(error, nan=0.0), 0.5), error)
    return np.where(np.isnan(error), np.inf, error)


def assert_signs_agree(got: Array, reference: Array) -> None:
    numbers = ~np.isnan(reference)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(reference[numbers]))


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_function_is_within_its_bound_everywhere(name: str, library: Library) -> None:
    case = UNARY[name]
    x = floats(case.ranges)
    got, reference = library.run(name, x), case.reference(x.astype(np.float64))
    error = ulp_errors(got, reference)
    inside = np.ones_like(x, dtype=bool)
    if name in FLUSHED:
        inside &= ~((reference < 2.0**-125.5) & (got == 0.0))
    error[~inside] = 0.0
    worst = np.argmax(error)
    assert error[worst] <= case.ulps, f"{name}({x[worst]!r}) = {got[worst]!r}, not {reference[worst]!r}"
    assert_signs_agree(got[inside], reference[inside])


@pytest.mark.parametrize("name", [*UNARY, *BINARY])
def test_bits_do_not_depend_on_the_vector_width(name: str, library: Library) -> None:
    inputs = pairs() if name in BINARY else (floats(UNARY[name].ranges, 20_000),)
    first = library.run(name, *inputs)
    for width in WIDTHS[1:]:
        other = library.run(name, *inputs, width=width)
        np.testing.assert_array_equal(other, first)
        np.testing.assert_array_equal(np.signbit(other[first == 0]), np.signbit(first[first == 0]))


def test_bits_do_not_depend_on_the_target(library: Library, tmp_path: Path) -> None:
    targets = runnable_targets()
    if len(targets) < 2:
        pytest.skip("this machine runs one target only")
    other = build([k for k in kernels() if k.width == 16 and k.name in (*UNARY, *BINARY)], targets[0], tmp_path)
    for name in UNARY:
        x = floats(UNARY[name].ranges, 20_000)
        np.testing.assert_array_equal(other.run(name, x), library.run(name, x), err_msg=name)
    for name in BINARY:
        np.testing.assert_array_equal(other.run(name, *pairs()), library.run(name, *pairs()), err_msg=name)


def test_exact_values(library: Library) -> None:
    x = np.array([0.0, -0.0, -np.inf, -1e30, -88.0, np.inf, 89.0, -104.0] * 2, np.float32)
    np.testing.assert_array_equal(library.run("exp", x)[:8], np.array([1, 1, 0, 0, 0, np.inf, np.inf, 0], np.float32))
    whole = np.arange(-125, 128, dtype=np.float32)[:240].copy()
    np.testing.assert_array_equal(library.run("exp2", whole), 2.0 ** whole.astype(np.float64))
    np.testing.assert_array_equal(library.run("log2", library.run("exp2", whole)), whole)
    saturated = np.linspace(5, 300, 4800, dtype=np.float32)
    assert library.run("tanh", saturated).max() == 1.0
    assert library.run("erf", saturated).max() == 1.0


def test_one_plus_erf_in_one(library: Library) -> None:
    """What GELU is made of: its absolute error, and exact ends."""
    x = floats(((-5, 5), (-1, 1), (3.8, 4)), 96_000)
    got, want = library.run("one_plus_erf", x), torch.special.erfc(-torch.from_numpy(x).double()).numpy()
    known = ~np.isnan(want)
    assert np.abs(got[known] - want[known]).max() <= 3e-7 and np.isnan(got[~known]).all()
    assert not got[x < -3.92].any() and (got[x > 3.92] == 2).all() and got[known].min() == 0
    twice, erf = library.run("erf_read_twice", x), library.run("erf", x)
    np.testing.assert_array_equal(twice, (erf + np.float32(1)) - erf)  # an erf that something else reads keeps its digits


def test_exp_is_monotone(library: Library) -> None:
    x = np.sort(floats(((-90, 90), (-1, 1)))[len(SPECIAL) :])
    x = x[~np.isnan(x)]
    x = x[: len(x) // 48 * 48].copy()
    assert (np.diff(library.run("exp", x)[library.run("exp", x) < np.inf]) >= 0).all()


def test_sine_and_cosine_are_close_in_absolute_terms(library: Library) -> None:
    x = floats(((-1e5, 1e5), (-1e3, 1e3)))
    x[~np.isfinite(x)] = 0
    for name, reference in (("sin", np.sin), ("cos", np.cos)):
        assert np.abs(library.run(name, x) - reference(x.astype(np.float64))).max() < 1.2e-7


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_power(library: Library) -> None:
    x, y = pairs()
    got, reference = library.run("powf", x, y), np.power(x.astype(np.float64), y.astype(np.float64))
    error = ulp_errors(got, reference)
    worst = np.argmax(error)
    assert error[worst] <= 2.0, f"pow({x[worst]!r}, {y[worst]!r}) = {got[worst]!r}, not {reference[worst]!r}"
    assert_signs_agree(got, reference)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_two_argument_arctangent(library: Library) -> None:
    y, x = pairs()
    got, reference = library.run("atan2", y, x), np.arctan2(y.astype(np.float64), x.astype(np.float64))
    assert ulp_errors(got, reference).max() <= 3.0
    assert_signs_agree(got, reference)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_remainder_is_exact(kind: str, library: Library) -> None:
    x, y = (array.astype(DTYPES[kind]) for array in pairs())
    if kind == "f64":
        x[2000:4000] *= 1e200
        y[3000:5000] *= 1e-200
    got = library.run("remf" if kind == "f32" else "remf_f64", x, y)
    np.testing.assert_array_equal(got, np.fmod(x, y))
    assert_signs_agree(got, np.fmod(x, y))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", DOUBLE)
def test_float64(name: str, library: Library) -> None:
    rng = np.random.default_rng(2)
    patterns = rng.integers(0, 2**64, 2000, dtype=np.uint64).view(np.float64)
    x = np.concatenate(
        [SPECIAL.astype(np.float64), patterns, rng.uniform(-3, 3, 3000), rng.uniform(-740, 740, 2000), [5e-324, 26.0, 709.78, -745.0]]
    )
    x = x[: len(x) // 16 * 16].copy()
    if name in ("sin", "cos", "tan"):
        x = np.concatenate([x, 2.0 ** rng.uniform(29, 1023, 2000)])
        closest = np.full(16, 6381956970095103 * 2.0**797)  # to a multiple of pi/2, of all float64 numbers
        np.testing.assert_allclose(library.run(f"{name}_f64", closest), DOUBLE[name](closest), rtol=2e-15)
    bound = {"erf": 5e-15, "asinh": 1e-15, "acosh": 1e-15, "atanh": 1e-15}.get(name, 5e-16)
    np.testing.assert_allclose(library.run(f"{name}_f64", x), DOUBLE[name](x), rtol=bound, atol=5e-324)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_float64_power(library: Library) -> None:
    x, y = (array.astype(np.float64) for array in pairs())
    np.testing.assert_allclose(library.run("powf_f64", x, y), np.power(x, y), rtol=2e-13, atol=5e-324)


def bfloat16(x: Array) -> Array:
    """Bits of the nearest bfloat16, from torch."""
    return torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_conversions_to_16_bits_round_once(library: Library) -> None:
    x = floats(((-4, 4), (-70000, 70000)))
    np.testing.assert_array_equal(library.run("to_f16_f32", x), x.astype(np.float16))
    numbers = np.where(np.isnan(x), 0, x).astype(np.float32)
    np.testing.assert_array_equal(library.run("to_bf16_f32", numbers), bfloat16(numbers))
    assert (library.run("to_bf16_f32", np.full(16, np.nan, np.float32)) & 0x7FFF > 0x7F80).all()
    # Just above and below the middle of two neighbors: rounding to float32 first would fall on the tie.
    middle = (1.0 + np.arange(1, 97, 2) / 256.0)[:, None] + np.array([-1e-12, 0.0, 1e-12])
    wide = middle.ravel()[:144].copy()
    expected = [np.uint16(_nearest_bfloat16(value)) for value in wide]
    np.testing.assert_array_equal(library.run("to_bf16_f64", wide), expected)
    halves = ((1.0 + np.arange(1, 97, 2) / 2048.0)[:, None] + np.array([-1e-12, 0.0, 1e-12])).ravel()[:144].copy()
    np.testing.assert_array_equal(library.run("to_f16_f64", halves), halves.astype(np.float16))


def _nearest_bfloat16(value: float) -> int:
    """For 1 <= value < 2."""
    return 0x3F80 + round((value - 1.0) * 128.0)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_16_bit_types_are_computed_in_float32(library: Library) -> None:
    patterns = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    wide = from_bfloat16(patterns)
    np.testing.assert_array_equal(library.run("from_bf16", patterns).view(np.uint32), wide.view(np.uint32))
    other = np.random.default_rng(3).permutation(patterns)
    total = wide + from_bfloat16(other)
    numbers = ~np.isnan(total)
    np.testing.assert_array_equal(library.run("add_bf16", patterns, other)[numbers], bfloat16(total)[numbers])
    half = patterns.view(np.float16)
    np.testing.assert_allclose(library.run("tanh_f16", half), np.tanh(half.astype(np.float64)).astype(np.float16), rtol=1e-3)


def test_integer_powers(library: Library) -> None:
    base = np.tile(np.arange(-8, 8, dtype=np.int32), 20)
    exponent = np.repeat(np.arange(-5, 15, dtype=np.int32), 16)
    expected = [_integer_power(int(b), int(e)) for b, e in zip(base, exponent, strict=True)]
    np.testing.assert_array_equal(library.run("ipowi", base, exponent), np.array(expected, np.int64).astype(np.int32))
    x = base.astype(np.float32) / 4
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(library.run("fpowi", x, exponent), np.power(x.astype(np.float64), exponent), rtol=3e-7)


def _integer_power(base: int, exponent: int) -> int:
    if exponent >= 0:
        return ((base**exponent + 2**31) % 2**32) - 2**31
    return base**-exponent if abs(base) == 1 else 0


@pytest.fixture(scope="module")
def every_function() -> str:
    checked = [kernel for kernel in kernels() if kernel.width == 16 or kernel.name in ("exp", "powf", "round")]
    for kind in ("f16", "bf16"):
        unary = ("math.sqrt", "math.floor", "math.round", "math.exp", "math.erf")
        binary = ("arith.maximumf", "arith.maxnumf", "arith.minnumf", "arith.remf", "arith.divf")
        checked += [Kernel(f"{op[5:]}_{kind}", f"{op} {{0}} : {{T}}", (kind,), kind, 0) for op in unary]
        checked += [Kernel(f"{op[6:]}_{kind}", f"{op} {{0}}, {{1}} : {{T}}", (kind, kind), kind, 8) for op in binary]
        checked += [Kernel(f"{op}_{kind}", f"arith.{op} {{0}} : {{T}} to {{O}}", ("i64",), kind, 5) for op in ("sitofp", "uitofp")]
    return llvm_text("\n".join(kernel.source() for kernel in checked))


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_nothing_calls_libm_or_a_compiler_runtime(target: CpuTarget, every_function: str) -> None:
    """compile_object refuses any such call."""
    assert compile_object(every_function, target)


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.5, 1.0, 2.0, 3.0])
def test_constant_exponents_become_products_and_roots(exponent: float, tmp_path: Path) -> None:
    source = Kernel("square", "math.powf {0}, %e : {T}", ("f32",), "f32", 16).source()
    source = source.replace("%k =", f"%e = arith.constant dense<{exponent}> : vector<16xf32>\n%k =")
    with context(), ir.Location.unknown():
        module = ir.Module.parse(source)
        ExpandMath().run(module, PassContext())
        assert "math.fma" not in str(module)
    targets = runnable_targets()
    if not targets:
        pytest.skip("this machine runs none of the targets")
    path = tmp_path / "code.so"
    path.write_bytes(link_shared([compile_object(llvm_text(source), targets[-1])]))
    x = floats(((0, 10),), 2000)
    with np.errstate(all="ignore"):
        reference = 1 / np.sqrt(x.astype(np.float64)) if exponent == -0.5 else np.power(x.astype(np.float64), exponent)
        error = ulp_errors(Library(ctypes.CDLL(str(path)), {"square": "f32"}).run("square", x), reference)
    worst = np.argmax(error)
    assert error[worst] <= 2.0, (x[worst], reference[worst])


@pytest.mark.parametrize(("op", "numpy_op"), [("maximumf", np.maximum), ("minimumf", np.minimum)])
@pytest.mark.parametrize("constant", [False, True])
def test_extrema_are_nan_where_an_operand_is(op: str, numpy_op: np.ufunc, constant: bool, tmp_path: Path) -> None:
    source = Kernel("extremum", f"arith.{op} {{0}}, {{1}} : {{T}}", ("f32", "f32"), "f32", 16).source()
    if constant:
        source = source.replace(f"arith.{op} %x0, %x1", f"arith.{op} %x0, %e").replace(
            "%k =", "%e = arith.constant dense<0.5> : vector<16xf32>\n%k ="
        )
    path = tmp_path / "code.so"
    path.write_bytes(link_shared([compile_object(llvm_text(source), runnable_targets()[-1])]))
    special = np.array([np.nan, -np.inf, np.inf, -1.0, 0.5, 0.0, 2.0, 1e-40], np.float32)
    x, y = (grid.ravel() for grid in np.meshgrid(special, special))
    got = Library(ctypes.CDLL(str(path)), {"extremum": "f32"}).run("extremum", x, y)
    np.testing.assert_array_equal(got, numpy_op(x, np.float32(0.5) if constant else y))


def test_sincos_shares_one_reduction(library: Library, tmp_path: Path) -> None:
    source = Kernel("sincos", "SINCOS", ("f32",), "f32", 16).source()
    body = "arith.subf %s, %c : vector<16xf32>"
    source = source.replace("%y = SINCOS", f"%s, %c = math.sincos %x0 : vector<16xf32>\n%y = {body}")
    path = tmp_path / "code.so"
    path.write_bytes(link_shared([compile_object(llvm_text(source), runnable_targets()[-1])]))
    x = floats(((-10, 10),), 2000)
    got = Library(ctypes.CDLL(str(path)), {"sincos": "f32"}).run("sincos", x)
    np.testing.assert_array_equal(got, library.run("sin", x) - library.run("cos", x))


def test_a_function_without_expansion_is_refused() -> None:
    source = "func.func @f(%x: f64) -> f64 {\n%y = math.erfc %x : f64\nreturn %y : f64\n}"
    with context(), ir.Location.unknown(), pytest.raises(UnsupportedError, match=r"math\.erfc on f64"):
        ExpandMath().run(ir.Module.parse(source), PassContext())
