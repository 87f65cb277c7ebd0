"""What random graphs are made of: each op writes one expression of a torch program, for values that fit it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .graph import Op, Pick, Value

OPS: list[Op] = []  # complete: another op goes to a file of its family, so that the numbers of graphs keep their meaning (plan.py)


def op(exact: bool = False, ops: list[Op] = OPS) -> Callable[[Callable[[Pick], str]], Callable[[Pick], str]]:
    def register(write: Callable[[Pick], str]) -> Callable[[Pick], str]:
        ops.append(Op(write.__name__, write, exact))
        return write

    return register


# ---- Elementwise ----

SMOOTH = (
    "{}.tanh()",
    "{}.sigmoid()",
    "torch.exp(-{}.abs())",
    "torch.log1p({}.abs())",
    "{}.abs().sqrt()",
    "torch.rsqrt({}.abs() + 1)",
    "{}.sin()",
    "{}.cos()",
    "F.gelu({})",
    "F.gelu({}, approximate='tanh')",
    "F.silu({})",
    "F.softplus({})",
    "torch.erf({})",
    "torch.atan({})",
    "F.elu({})",
    "F.hardswish({})",
    "F.hardsigmoid({})",
    "F.mish({})",
    "F.logsigmoid({})",
    "torch.expm1({} * 0.25)",
    "torch.log2({}.abs() + 1)",
    "torch.exp2({}.clamp(-8, 8))",
    "F.softsign({})",
    "1 / ({}.abs() + 0.5)",
    "{}.square()",
    "{} ** 3",
    "({}.abs() + 0.25) ** 0.7",
    "F.selu({})",
    "torch.asinh({})",
    "F.celu({}, 1.5)",
    "{} / 3",
)
EXACT = (
    "F.relu({})",
    "-{}",
    "{}.abs()",
    "{} * 2",
    "{} + 1",
    "1 - {}",
    "{}.clamp(-1, 2)",
    "{}.clamp(min=0.5)",
    "F.leaky_relu({}, 0.125)",
    "F.relu6({})",
    "F.hardtanh({})",
    "{}.clone()",
    "torch.zeros_like({})",
    "torch.ones_like({})",
    "torch.where({0} > 0, {0}, {0} * 0.5)",
)
STEPS = (
    "{}.floor()",
    "{}.ceil()",
    "{}.round()",
    "{}.trunc()",
    "{}.sign()",
    "{}.frac()",
    "{} % 2",
    "torch.fmod({}, 3)",
    "{} // 2",
    "torch.heaviside({0}, {0})",
)
COMPARE = ("<", "<=", ">", ">=", "==", "!=")


@op()
def smooth(p: Pick) -> str:
    return str(p.one(*SMOOTH)).format(p.real().name)


@op(exact=True)
def plain(p: Pick) -> str:
    return str(p.one(*EXACT)).format(p.value(lambda v: v.dtype not in (torch.bool, torch.uint8)).name)


@op(exact=True)
def steps(p: Pick) -> str:
    return str(p.one(*STEPS)).format(p.real(exact=True).name)


@op(exact=True)
def arithmetic(p: Pick) -> str:
    a, b = p.value(lambda v: v.dtype != torch.bool), p.value(lambda v: v.dtype != torch.bool)
    return f"{a.name} {p.one('+', '-')} {b.name}"


@op()
def product(p: Pick) -> str:
    a, b = p.real(), p.value()
    text = p.one(
        "{a} * {b}",
        "{a} / ({b}.abs() + 1)",
        "torch.addcmul({a}, {a}, {b}, value=0.5)",
        "torch.lerp({a}, {b}, 0.25)",
        "torch.hypot({a}, {b})",
    )
    return str(text).format(a=a.name, b=b.name)


@op(exact=True)
def extremum(p: Pick) -> str:
    return f"torch.{p.one('maximum', 'minimum')}({p.value().name}, {p.value().name})"


@op(exact=True)
def comparison(p: Pick) -> str:
    return f"{p.value(lambda v: v.exact).name} {p.one(*COMPARE)} {p.value(lambda v: v.exact).name}"


@op(exact=True)
def choice(p: Pick) -> str:
    mask, a = p.value(lambda v: v.dtype == torch.bool), p.value()
    other = p.value(lambda v: v.dtype == a.dtype).name
    if p.flag() and a.dtype != torch.bool:
        return f"{a.name}.masked_fill({mask.name}, {p.one('0', '1', '3')})"
    return f"torch.where({mask.name}, {a.name}, {other})"


@op(exact=True)
def logical(p: Pick) -> str:
    a, b = (p.value(lambda v: v.dtype == torch.bool).name for _ in range(2))
    return str(p.one("{a} & {b}", "{a} | {b}", "{a} ^ {b}", "~{a}", "torch.logical_and({a}, {b})", "{a}.logical_not()")).format(a=a, b=b)


@op(exact=True)
def integers(p: Pick) -> str:
    a, b = p.whole(), p.whole()
    forms = (
        "{a} * {b}",
        "{a} & {b}",
        "{a} | {b}",
        "{a} ^ {b}",
        "{a} // 3",
        "{a} % 5",
        "{a} % -3",
        "torch.div({a}, 4, rounding_mode='trunc')",
        "{a} << 1",
        "{a} >> 1",
        "~{a}",
        "{a} / 4",
    )
    return str(p.one(*forms)).format(a=a.name, b=b.name)


@op(exact=True)
def cast(p: Pick) -> str:
    a = p.value()
    to = p.one("float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool", "int16")
    p.need(a.exact or to.startswith(("float", "bfloat")))
    bounded = f"{a.name}.clamp(0, 100)" if to == "uint8" and a.dtype != torch.bool else a.name
    return f"{bounded}.to(torch.{to})"


# ---- Reductions ----


def _axes(p: Pick, value: Value) -> str:
    if value.rank > 1 and p.below(3) == 2:
        first = p.below(value.rank)
        second = (first + 1 + p.below(value.rank - 1)) % value.rank
        return f"({first}, {second})"
    return str(p.axis(value) - (value.rank if p.flag() else 0))


@op()
def reduction(p: Pick) -> str:
    a = p.real(1)
    name = p.one(
        "{a}.mean({d}, keepdim={k})",
        "{a}.sum({d}, keepdim={k})",
        "{a}.var({d}, unbiased=False, keepdim={k})",
        "torch.logsumexp({a}, {d}, keepdim={k})",
        "torch.linalg.vector_norm({a}, dim={d}, keepdim={k})",
        "torch.std({a}, {d}, correction=0, keepdim={k})",
    )
    return str(name).format(a=a.name, d=_axes(p, a), k=p.flag())


@op(exact=True)
def extremum_over(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1 and v.dtype != torch.bool)
    return f"{a.name}.{p.one('amax', 'amin')}({_axes(p, a)}, keepdim={p.flag()})"


@op(exact=True)
def whole_reduction(p: Pick) -> str:
    a = p.value(lambda v: v.exact and v.rank >= 1)
    d = p.axis(a)
    forms = (
        "{a}.sum({d})",
        "({a} > 0).any({d}, keepdim=True)",
        "({a} > 0).all({d})",
        "({a} != 0).sum({d})",
        "{a}.argmax({d})",
        "{a}.argmin({d}, keepdim=True)",
        "{a}.max({d})[0]",
        "{a}.min({d}, keepdim=True)[1]",
        "torch.count_nonzero({a}, {d})",
        "{a}.cumsum({d})",
        "({a} > 1).all()",
    )
    return str(p.one(*forms)).format(a=a.name, d=d)


@op()
def to_scalar(p: Pick) -> str:
    return str(p.one("{}.sum()", "{}.mean()", "{}.amax()", "{}.std(correction=0)")).format(p.real().name)


@op()
def scan(p: Pick) -> str:
    a = p.real(1)
    return f"{a.name}.cumsum({p.axis(a)}) * 0.125"


@op()
def softmax(p: Pick) -> str:
    a = p.real(1)
    return f"F.{p.one('softmax', 'log_softmax', 'softmin')}({a.name}, {p.axis(a)})"


# ---- Norms ----


@op()
def layer_norm(p: Pick) -> str:
    a = p.real(1)
    size = a.static(-1)
    p.need(size and a.dtype == torch.float32)
    form = p.one("torch.nn.LayerNorm({n})", "torch.nn.RMSNorm({n}, eps=1e-5)", "torch.nn.LayerNorm({n}, elementwise_affine=False)")
    return f"{p.member(str(form).format(n=size))}({a.name})"


@op()
def channel_norm(p: Pick) -> str:
    a = p.real(3, 4)
    size = a.static(1)
    p.need(size and a.dtype == torch.float32)
    groups = next(g for g in (p.one(1, 2, 3), 1) if size % g == 0)
    batch = f"torch.nn.BatchNorm{a.rank - 2}d({size}"
    return f"{p.member(p.one(f'{batch})', f'torch.nn.GroupNorm({groups}, {size})', f'{batch}, affine=False)'))}({a.name})"


@op()
def normalize(p: Pick) -> str:
    a = p.real(1)
    return f"F.normalize({a.name}, dim={p.axis(a)}, eps=0.01)"


# ---- Products ----


@op()
def linear(p: Pick) -> str:
    a = p.value(lambda v: v.dtype == torch.float32 and v.rank >= 1 and bool(v.static(-1)))
    return f"{p.member(f'torch.nn.Linear({a.static(-1)}, {p.one(1, 5, 12, 49, 100)}, bias={p.flag()})')}({a.name})"


@op()
def weight_product(p: Pick) -> str:
    a = p.value(lambda v: v.dtype == torch.float32 and v.rank >= 1 and bool(v.static(-1)))
    shape = p.one(f"{a.static(-1)}, 6", f"{a.static(-1)}", f"1, {a.static(-1)}, 3")
    return f"{a.name} @ {p.member(f'torch.nn.Parameter(torch.randn({shape}) * 0.3)')}"


@op()
def gram(p: Pick) -> str:
    a = p.real(2)
    b = p.value(lambda v: v.dtype == a.dtype and v.rank >= 2)
    return str(p.one("({a} @ {b}.transpose(-1, -2)) * 0.125", "({a}.transpose(-1, -2) @ {b}) * 0.125", "({a} @ {b}) * 0.125")).format(
        a=a.name, b=b.name
    )


@op()
def einsum(p: Pick) -> str:
    a = p.real(2, 3)
    b = p.value(lambda v: v.dtype == a.dtype and v.rank == a.rank)
    pattern = (
        p.one("ij,kj->ik", "ij,ij->i", "ij,ik->jk", "ij,ij->j")
        if a.rank == 2
        else p.one("bij,bkj->bik", "bij,bij->bi", "bij,bik->kj", "bij,bij->ji", "bij,bij->bj")
    )
    return f"torch.einsum('{pattern}', {a.name}, {b.name}) * 0.125"


@op()
def vector_product(p: Pick) -> str:
    a, b = (p.value(lambda v: v.dtype == torch.float32 and v.rank == 1) for _ in range(2))
    return str(p.one("{a}.dot({b}) * 0.125", "torch.outer({a}, {b})", "{a} @ {b}")).format(a=a.name, b=b.name)


@op()
def attention(p: Pick) -> str:
    q = p.value(lambda v: v.dtype == torch.float32 and v.rank in (3, 4))
    k = p.value(lambda v: v.dtype == torch.float32 and v.rank == q.rank)
    # Eager torch doesn't look whether there is a value for each key.
    v = p.value(
        lambda v: v.dtype == torch.float32 and v.rank == q.rank and [s.shape[-2] for s in v.samples] == [s.shape[-2] for s in k.samples]
    )
    return f"F.scaled_dot_product_attention({q.name}, {k.name}, {v.name}, is_causal={p.flag()})"


@op()
def self_attention(p: Pick) -> str:
    a = p.value(lambda v: v.dtype == torch.float32 and v.rank == 3 and v.static(2) == 12)
    heads = p.one(1, 2, 3)
    return f"{p.member(f'torch.nn.MultiheadAttention(12, {heads}, batch_first=True)')}({a.name}, {a.name}, {a.name}, need_weights=False)[0]"


# ---- Windows ----


@op()
def convolution(p: Pick) -> str:
    a = p.value(lambda v: v.dtype == torch.float32 and v.rank in (3, 4) and bool(v.static(1)))
    channels, n = a.static(1), a.rank - 2
    groups = p.one(*[g for g in (1, channels, 2, 3) if g and channels and channels % g == 0])
    out = groups * p.one(1, 2, 4)
    kernel, stride, padding, dilation = p.one(1, 3, 2), p.one(1, 2, 3), p.one(0, 1, 2), p.one(1, 2)
    if p.below(4) == 3:
        options = f"stride={stride}, padding={min(padding, kernel - 1)}, groups={groups}, output_padding={min(stride - 1, 1)}"
        return f"{p.member(f'torch.nn.ConvTranspose{n}d({channels}, {out}, {kernel}, {options})')}({a.name})"
    mode = p.one("zeros", "zeros", "zeros", "circular")
    options = f"stride={stride}, padding={padding}, dilation={dilation}, groups={groups}, bias={p.flag()}, padding_mode='{mode}'"
    return f"{p.member(f'torch.nn.Conv{n}d({channels}, {out}, {kernel}, {options})')}({a.name})"


@op()
def pool(p: Pick) -> str:
    a = p.value(lambda v: v.dtype == torch.float32 and v.rank in (3, 4))
    kernel, stride, n = p.one(2, 3, 1), p.one(1, 2, 3), a.rank - 2
    padding = p.one(0, kernel // 2)
    forms = (
        "F.max_pool{n}d({a}, {k}, {s}, {p}, ceil_mode={c})",
        "F.avg_pool{n}d({a}, {k}, {s}, {p}, ceil_mode={c})",
        "F.avg_pool{n}d({a}, {k}, {s}, {p}, count_include_pad=False)",
        "F.adaptive_avg_pool{n}d({a}, 1)",
        "F.adaptive_max_pool{n}d({a}, 1)",
        "F.max_pool{n}d({a}, {k}, {s}, dilation=2)",
    )
    return str(p.one(*forms)).format(a=a.name, k=kernel, s=stride, p=padding, n=n, c=p.flag())


@op()
def resize(p: Pick) -> str:
    a = p.value(lambda v: v.dtype == torch.float32 and v.rank in (3, 4))
    mode = p.one("nearest", "bilinear" if a.rank == 4 else "linear")
    return f"F.interpolate({a.name}, scale_factor=2, mode='{mode}')"


@op()
def recurrent(p: Pick) -> str:
    a = p.value(lambda v: v.dtype == torch.float32 and v.rank == 3 and bool(v.static(2)))
    options = f"batch_first=True, num_layers={p.one(1, 2)}, bidirectional={p.flag()}"
    kind = p.one("LSTM", "GRU", "RNN")
    return f"{p.member(f'torch.nn.{kind}({a.static(2)}, {p.one(4, 5)}, {options})')}({a.name})[0]"


# ---- Moves ----


@op(exact=True)
def transpose(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 2)
    first = p.below(a.rank)
    return f"{a.name}.transpose({first}, {(first + 1 + p.below(a.rank - 1)) % a.rank})"


@op(exact=True)
def permute(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 3)
    shift = 1 + p.below(a.rank - 1)
    return f"{a.name}.permute({', '.join(str((i + shift) % a.rank) for i in range(a.rank))})"


@op(exact=True)
def merge(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 2)
    at = p.below(a.rank - 1)
    if p.flag():
        return f"{a.name}.flatten({at}, {at + 1})"
    sizes = [a.size(i) for i in range(a.rank)]
    sizes[at : at + 2] = [p.one(f"{sizes[at]} * {sizes[at + 1]}", "-1")]
    return f"{a.name}.reshape({', '.join(sizes)})"


@op(exact=True)
def split(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1 and any((v.static(i) or 0) > 1 for i in range(v.rank)))
    axis = p.axis(a, static=True)
    size = a.static(axis)
    factor = p.one(*[f for f in (2, 3, 4, 5, size, 1) if size and f and size % f == 0])
    sizes = [a.size(i) for i in range(a.rank)]
    sizes[axis : axis + 1] = p.one([str(size // factor), str(factor)], ["-1", str(factor)], [str(factor), str(size // factor)])
    return f"{a.name}.reshape({', '.join(sizes)})"


@op(exact=True)
def flatten(p: Pick) -> str:
    # torch.export refuses sizes in another order: it asks for each pair whether they may be equal.
    a = p.value(lambda v: v.rank >= 2)
    return f"{a.name}.reshape({p.one('-1', f'-1, {a.size(-1)}', f'{a.size(0)}, -1', f'1, -1, {a.size(-1)}')})"


@op(exact=True)
def unit_dim(p: Pick) -> str:
    a = p.value()
    ones = [i for i in range(a.rank) if a.static(i) == 1]
    if ones and p.flag():
        return f"{a.name}.squeeze({p.one(*ones)})"
    return f"{a.name}.unsqueeze({p.below(a.rank + 1)})"


@op(exact=True)
def expand(p: Pick) -> str:
    a = p.value()
    sizes = ["-1"] * a.rank
    for axis in [i for i in range(a.rank) if a.static(i) == 1]:
        sizes[axis] = p.one("3", "-1")
    if p.flag():
        return f"{a.name}.repeat({', '.join(str(p.one(1, 2, 3)) for _ in range(max(1, a.rank)))})"
    return f"{a.name}.expand({', '.join(['2', *sizes])})"


@op(exact=True)
def take(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1)
    axis = p.axis(a)
    before = ":, " * axis
    at = p.one("1:", ":-1", "::2", "0", "-1", "1:3", "0:0", "1::3", ":1", "2:9")
    return f"{a.name}[{before}{at}]"


@op(exact=True)
def part(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1)
    axis = p.axis(a, static=True)
    return str(p.one("{a}.chunk(2, {d})[-1]", "{a}.narrow({d}, 1, 1)", "{a}.split(2, {d})[0]", "{a}.unbind({d})[0]")).format(
        a=a.name, d=axis
    )


@op(exact=True)
def concat(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1)
    axis = p.axis(a)
    b = p.value(
        lambda v: (
            v.rank == a.rank
            and all(i == axis or x.shape[i] == y.shape[i] for x, y in zip(v.samples, a.samples, strict=True) for i in range(v.rank))
        )
    )
    if p.below(4) == 3:
        return f"torch.stack([{a.name}, {b.name}], {axis})"
    return f"torch.cat([{', '.join(p.one([a.name, b.name], [b.name, a.name, a.name]))}], {axis})"


@op(exact=True)
def pad(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1)
    widths = [p.one(1, 0, 2) for _ in range(2 * (1 + p.below(min(a.rank, 2))))]
    mode = p.one("constant", "constant", "replicate", "reflect")
    return f"F.pad({a.name}, ({', '.join(map(str, widths))}), mode='{mode}')"


@op(exact=True)
def rearrange(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1)
    d = p.axis(a)
    form = p.one(
        "{a}.flip({d})",
        "{a}.roll(1, {d})",
        "{a}.repeat_interleave(2, {d})",
        "{a}.tril()",
        "{a}.triu(1)",
        "{a}.diagonal(0, 0, -1)",
        "{a}.unfold({d}, 2, 1)",
        "{a}.movedim({d}, 0)",
    )
    return str(form).format(a=a.name, d=d)


# ---- Indices ----


@op(exact=True)
def embedding(p: Pick) -> str:
    ids = p.value(lambda v: v.dtype in (torch.int64, torch.int32))
    return f"{p.member(f'torch.nn.Embedding(9, {p.one(12, 5, 1)})')}({ids.name}.clamp(0, 8))"


@op(exact=True)
def index(p: Pick) -> str:
    a, ids = p.value(lambda v: v.rank >= 1), p.value(lambda v: v.dtype == torch.int64)
    axis = p.axis(a)
    before = ":, " * axis
    return f"{a.name}[{before}{ids.name}.clamp(0, {a.size(axis)} - 1)]"


@op(exact=True)
def gather(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1)
    ids = p.value(lambda v: v.dtype == torch.int64 and v.rank == a.rank)
    axis = p.axis(a)
    return f"torch.gather({a.name}, {axis}, {ids.name}.clamp(0, {a.size(axis)} - 1))"


@op(exact=True)
def select_rows(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1)
    axis = p.axis(a, static=True)
    rows = p.member(f"torch.nn.Buffer(torch.randint(0, {a.static(axis)}, (4,)))")
    return f"{a.name}.index_select({axis}, {rows})"


@op(exact=True)
def positions(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1)
    size = a.size(p.axis(a))
    return str(
        p.one("torch.arange({})", "torch.arange({}, dtype=torch.float32)", "torch.ones({}, 3)", "torch.full(({},), 0.5)", "torch.eye({})")
    ).format(size)


@op(exact=True)
def one_hot(p: Pick) -> str:
    return f"F.one_hot({p.value(lambda v: v.dtype == torch.int64).name}.clamp(0, 4), 5)"


@op(exact=True)
def scatter(p: Pick) -> str:
    a = p.value(lambda v: v.rank >= 1 and v.is_float)
    axis = p.axis(a)
    rows = p.value(lambda v: v.dtype == a.dtype and v.rank == a.rank)
    before = ":, " * axis
    return str(p.one("torch.slice_scatter({a}, {b}[{s}1:], {d}, 1)", "torch.cat([{a}[{s}:1], {b}[{s}1:]], {d})")).format(
        a=a.name, b=rows.name, s=before, d=axis
    )
