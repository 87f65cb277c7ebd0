"""Instructions that a processor lacks, as plain LLVM IR: code for AVX-512 dot products and AMX tiles runs, slowly, on any processor.

LLVM splits wide vectors by itself; what it can't do is an intrinsic of a feature that the target doesn't have. `emulate` gives each such
intrinsic a body with the semantics of Intel's instruction set reference (VDPBF16PS, VCVTNE2PS2BF16, VPDPBUSD, VPMADDUBSW, VPMADDWD,
TDPBF16PS, TDPBUSD, TDPBSUD, TILELOADD, TILESTORED), except that subnormals are kept. A tile is an array of 16 rows of 64 bytes: all
tiles of generated code have that shape (backends/cpu/arithmetic/amx.py).
"""

import re

_TILE = "[16 x <16 x i32>]"
_CALL = re.compile(r"@llvm\.x86\.([\w.]+)")
_DECLARATION = re.compile(r"^[ \t]*declare [^\n]*@llvm\.x86\.[\w.]+\([^\n]*\n", re.MULTILINE)
_ROWS = range(16)
_LANES = ", ".join(f"i32 {lane}" for lane in range(32))  # of two vectors, one behind the other


def emulate(text: str) -> str:
    """LLVM IR text without calls of x86 intrinsics that `_BODIES` knows. Any other is left, for LLVM to select or refuse."""
    used = sorted({name for name in _CALL.findall(text) if name in _BODIES})
    if not used:
        return text
    known = re.compile("|".join(re.escape(f"@llvm.x86.{name}") + r"(?=\()" for name in used))
    text = _DECLARATION.sub(lambda found: "" if known.search(found[0]) else found[0], text)
    text = known.sub(lambda found: _symbol(found[0].removeprefix("@llvm.x86.")), text).replace("x86_amx", _TILE)
    bodies = [_BODIES[name].format(symbol=_symbol(name), tile=_TILE, lanes=_LANES) for name in used]
    return "\n".join([text, *bodies, *(line for line in _HELPERS if line.split("(")[0] not in text)]) + "\n"


def _symbol(name: str) -> str:
    return f"@emulated.{name}"


def _load_rows() -> str:
    lines = []
    for row in _ROWS:
        lines += [
            f"  %o{row} = mul i64 %stride, {row}",
            f"  %p{row} = getelementptr i8, ptr %base, i64 %o{row}",
            f"  %r{row} = load <16 x i32>, ptr %p{row}, align 1",
            f"  %t{row} = insertvalue {{tile}} {f'%t{row - 1}' if row else 'poison'}, <16 x i32> %r{row}, {row}",
        ]
    return "\n".join(lines)


def _store_rows() -> str:
    lines = []
    for row in _ROWS:
        lines += [
            f"  %o{row} = mul i64 %stride, {row}",
            f"  %p{row} = getelementptr i8, ptr %base, i64 %o{row}",
            f"  %r{row} = extractvalue {{tile}} %value, {row}",
            f"  store <16 x i32> %r{row}, ptr %p{row}, align 1",
        ]
    return "\n".join(lines)


_DOT = """
define internal <16 x float> {symbol}(<16 x float> %sum, <32 x bfloat> %a, <32 x bfloat> %b) alwaysinline {{
  %aw = bitcast <32 x bfloat> %a to <16 x i32>
  %bw = bitcast <32 x bfloat> %b to <16 x i32>
  %ah = and <16 x i32> %aw, splat (i32 -65536)
  %bh = and <16 x i32> %bw, splat (i32 -65536)
  %al = shl <16 x i32> %aw, splat (i32 16)
  %bl = shl <16 x i32> %bw, splat (i32 16)
  %a1 = bitcast <16 x i32> %ah to <16 x float>
  %b1 = bitcast <16 x i32> %bh to <16 x float>
  %a0 = bitcast <16 x i32> %al to <16 x float>
  %b0 = bitcast <16 x i32> %bl to <16 x float>
  %odd = call <16 x float> @llvm.fma.v16f32(<16 x float> %a1, <16 x float> %b1, <16 x float> %sum)
  %even = call <16 x float> @llvm.fma.v16f32(<16 x float> %a0, <16 x float> %b0, <16 x float> %odd)
  ret <16 x float> %even
}}"""

# Round to nearest even on the bits; a NaN becomes quiet.
_CONVERT = """
define internal <32 x bfloat> {symbol}(<16 x float> %high, <16 x float> %low) alwaysinline {{
  %x = shufflevector <16 x float> %low, <16 x float> %high, <32 x i32> <{lanes}>
  %bits = bitcast <32 x float> %x to <32 x i32>
  %upper = lshr <32 x i32> %bits, splat (i32 16)
  %last = and <32 x i32> %upper, splat (i32 1)
  %half = add <32 x i32> %last, splat (i32 32767)
  %rounded = add <32 x i32> %bits, %half
  %number = lshr <32 x i32> %rounded, splat (i32 16)
  %quiet = or <32 x i32> %upper, splat (i32 64)
  %nan = fcmp uno <32 x float> %x, zeroinitializer
  %word = select <32 x i1> %nan, <32 x i32> %quiet, <32 x i32> %number
  %short = trunc <32 x i32> %word to <32 x i16>
  %result = bitcast <32 x i16> %short to <32 x bfloat>
  ret <32 x bfloat> %result
}}"""

# What products of tiles begin and end with: the operands in memory, and a loop over rows.
_TILE_ROWS = """
define internal {tile} {symbol}(i16 %m, i16 %n, i16 %k, {tile} %c, {tile} %a, {tile} %b) noinline {{
entry:
  %cs = alloca {tile}, align 64
  %as = alloca {tile}, align 64
  %bs = alloca {tile}, align 64
  store {tile} %c, ptr %cs, align 64
  store {tile} %a, ptr %as, align 64
  store {tile} %b, ptr %bs, align 64
  br label %rows
rows:
"""
_TILE_END = """
  %next_row = add i64 %row, 1
  %last_row = icmp eq i64 %next_row, 16
  br i1 %last_row, label %end, label %rows
end:
  %result = load {tile}, ptr %cs, align 64
  ret {tile} %result
}}"""

# Two sums for each element, of the first and of the second of each pair, added at the end.
_TILE_DOT = (
    _TILE_ROWS
    + """\
  %row = phi i64 [ 0, %entry ], [ %next_row, %finish ]
  br label %pairs
pairs:
  %pair = phi i64 [ 0, %rows ], [ %next_pair, %pairs ]
  %even = phi <16 x float> [ zeroinitializer, %rows ], [ %even_sum, %pairs ]
  %odd = phi <16 x float> [ zeroinitializer, %rows ], [ %odd_sum, %pairs ]
  %ap = getelementptr [16 x i32], ptr %as, i64 %row, i64 %pair
  %aw = load i32, ptr %ap, align 4
  %a0w = shl i32 %aw, 16
  %a1w = and i32 %aw, -65536
  %a0s = bitcast i32 %a0w to float
  %a1s = bitcast i32 %a1w to float
  %a0i = insertelement <16 x float> poison, float %a0s, i64 0
  %a1i = insertelement <16 x float> poison, float %a1s, i64 0
  %a0 = shufflevector <16 x float> %a0i, <16 x float> poison, <16 x i32> zeroinitializer
  %a1 = shufflevector <16 x float> %a1i, <16 x float> poison, <16 x i32> zeroinitializer
  %bp = getelementptr <16 x i32>, ptr %bs, i64 %pair
  %bw = load <16 x i32>, ptr %bp, align 64
  %b0w = shl <16 x i32> %bw, splat (i32 16)
  %b1w = and <16 x i32> %bw, splat (i32 -65536)
  %b0 = bitcast <16 x i32> %b0w to <16 x float>
  %b1 = bitcast <16 x i32> %b1w to <16 x float>
  %even_sum = call <16 x float> @llvm.fma.v16f32(<16 x float> %a0, <16 x float> %b0, <16 x float> %even)
  %odd_sum = call <16 x float> @llvm.fma.v16f32(<16 x float> %a1, <16 x float> %b1, <16 x float> %odd)
  %next_pair = add i64 %pair, 1
  %last_pair = icmp eq i64 %next_pair, 16
  br i1 %last_pair, label %finish, label %pairs
finish:
  %cp = getelementptr <16 x float>, ptr %cs, i64 %row
  %before = load <16 x float>, ptr %cp, align 64
  %both = fadd <16 x float> %even_sum, %odd_sum
  %after = fadd <16 x float> %before, %both
  store <16 x float> %after, ptr %cp, align 64
"""
    + _TILE_END
)


def _dot_bytes(symbol: str, lanes: int) -> str:
    """Unsigned by signed bytes, four neighbors added to each 32-bit sum."""
    vector, lines = f"<{lanes} x i32>", []
    for byte in range(4):
        left, right = 24 - 8 * byte, "splat (i32 24)"
        lines += [
            f"  %ah{byte} = shl {vector} %aw, splat (i32 {left})",
            f"  %bh{byte} = shl {vector} %bw, splat (i32 {left})",
            f"  %a{byte} = lshr {vector} %ah{byte}, {right}",
            f"  %b{byte} = ashr {vector} %bh{byte}, {right}",
            f"  %p{byte} = mul {vector} %a{byte}, %b{byte}",
            f"  %s{byte + 1} = add {vector} %s{byte}, %p{byte}",
        ]
    body = "\n".join(lines).replace("%s0", "%sum")
    words = [f"  %{each}w = bitcast <{4 * lanes} x i8> %{each} to {vector}" for each in "ab"]
    head = f"define internal {vector} {symbol}({vector} %sum, <{4 * lanes} x i8> %a, <{4 * lanes} x i8> %b) alwaysinline {{"
    return "\n".join([head, *words, body, f"  ret {vector} %s4", "}"])


def _doubled(text: str) -> str:
    """Text whose braces str.format leaves."""
    return text.replace("{", "{{").replace("}", "}}")


_MADD = """
define internal <16 x i32> {symbol}(<32 x i16> %a, <32 x i16> %b) alwaysinline {{
  %aw = bitcast <32 x i16> %a to <16 x i32>
  %bw = bitcast <32 x i16> %b to <16 x i32>
  %al = shl <16 x i32> %aw, splat (i32 16)
  %bl = shl <16 x i32> %bw, splat (i32 16)
  %a0 = ashr <16 x i32> %al, splat (i32 16)
  %b0 = ashr <16 x i32> %bl, splat (i32 16)
  %a1 = ashr <16 x i32> %aw, splat (i32 16)
  %b1 = ashr <16 x i32> %bw, splat (i32 16)
  %even = mul <16 x i32> %a0, %b0
  %odd = mul <16 x i32> %a1, %b1
  %sum = add <16 x i32> %even, %odd
  ret <16 x i32> %sum
}}"""

# Products of an unsigned and a signed byte fit 16 bits, sums of two saturate.
_MADD_BYTES = """
define internal <32 x i16> {symbol}(<64 x i8> %a, <64 x i8> %b) alwaysinline {{
  %aw = bitcast <64 x i8> %a to <32 x i16>
  %bw = bitcast <64 x i8> %b to <32 x i16>
  %a0 = and <32 x i16> %aw, splat (i16 255)
  %a1 = lshr <32 x i16> %aw, splat (i16 8)
  %bl = shl <32 x i16> %bw, splat (i16 8)
  %b0 = ashr <32 x i16> %bl, splat (i16 8)
  %b1 = ashr <32 x i16> %bw, splat (i16 8)
  %even = mul <32 x i16> %a0, %b0
  %odd = mul <32 x i16> %a1, %b1
  %sum = call <32 x i16> @llvm.sadd.sat.v32i16(<32 x i16> %even, <32 x i16> %odd)
  ret <32 x i16> %sum
}}"""

_TILE_DOT_INT8 = (
    _TILE_ROWS
    + """\
  %row = phi i64 [ 0, %entry ], [ %next_row, %finish ]
  %cp = getelementptr <16 x i32>, ptr %cs, i64 %row
  %before = load <16 x i32>, ptr %cp, align 64
  br label %words
words:
  %word = phi i64 [ 0, %rows ], [ %next_word, %words ]
  %sum = phi <16 x i32> [ %before, %rows ], [ %next_sum, %words ]
  %ap = getelementptr [16 x i32], ptr %as, i64 %row, i64 %word
  %aw = load i32, ptr %ap, align 4
  %ai = insertelement <16 x i32> poison, i32 %aw, i64 0
  %av = shufflevector <16 x i32> %ai, <16 x i32> poison, <16 x i32> zeroinitializer
  %bp = getelementptr <16 x i32>, ptr %bs, i64 %word
  %bw = load <16 x i32>, ptr %bp, align 64
  %ab = bitcast <16 x i32> %av to <64 x i8>
  %bb = bitcast <16 x i32> %bw to <64 x i8>
  %next_sum = call <16 x i32> @emulated.dot_bytes.16(<16 x i32> %sum, <64 x i8> %ab, <64 x i8> %bb)
  %next_word = add i64 %word, 1
  %last_word = icmp eq i64 %next_word, 16
  br i1 %last_word, label %finish, label %words
finish:
  store <16 x i32> %next_sum, ptr %cp, align 64
"""
    + _TILE_END
)
# Signed by unsigned bytes: the factors change places.
_TILE_DOT_SIGNED = _TILE_DOT_INT8.replace("<64 x i8> %ab, <64 x i8> %bb", "<64 x i8> %bb, <64 x i8> %ab")

_ZERO = """
define internal {tile} {symbol}(i16 %m, i16 %n) alwaysinline {{
  ret {tile} zeroinitializer
}}"""

_LOAD = f"""
define internal {{tile}} {{symbol}}(i16 %m, i16 %n, ptr %base, i64 %stride) alwaysinline {{{{
{_load_rows()}
  ret {{tile}} %t15
}}}}"""

_STORE = f"""
define internal void {{symbol}}(i16 %m, i16 %n, ptr %base, i64 %stride, {{tile}} %value) alwaysinline {{{{
{_store_rows()}
  ret void
}}}}"""

_BODIES = {
    "avx512bf16.dpbf16ps.512": _DOT,
    "avx512bf16.cvtne2ps2bf16.512": _CONVERT,
    "avx512.vpdpbusd.512": _doubled(_dot_bytes("SYMBOL", 16)).replace("SYMBOL", "{symbol}"),
    "avx512.vpdpbusd.256": _doubled(_dot_bytes("SYMBOL", 8)).replace("SYMBOL", "{symbol}"),
    "avx512.pmaddubs.w.512": _MADD_BYTES,
    "avx512.pmaddw.d.512": _MADD,
    "tdpbf16ps.internal": _TILE_DOT,
    "tdpbusd.internal": _TILE_DOT_INT8,
    "tdpbsud.internal": _TILE_DOT_SIGNED,
    "tilezero.internal": _ZERO,
    "tileloadd64.internal": _LOAD,
    "tilestored64.internal": _STORE,
}
_HELPERS = (  # what bodies call, left out where the text has it
    "declare <16 x float> @llvm.fma.v16f32(<16 x float>, <16 x float>, <16 x float>)",
    "declare <32 x i16> @llvm.sadd.sat.v32i16(<32 x i16>, <32 x i16>)",
    _dot_bytes("@emulated.dot_bytes.16", 16),
)
