"""Ops of images and signals: resampling, adaptive windows, weights that are computed, complex numbers."""

from __future__ import annotations

from functools import partial

from .graph import Op, Pick
from .ops import op

SIGNALS: list[Op] = []
op = partial(op, ops=SIGNALS)


@op()
def resample(p: Pick) -> str:
    a = p.real(3, 4)
    smooth = "linear" if a.rank == 3 else "bilinear"
    size = ", ".join(f"{a.size(i)} + {1 + i}" for i in range(2, a.rank))
    half = ", ".join(f"({a.size(i)} + 1) // 2" for i in range(2, a.rank))
    form = p.one(
        "F.interpolate({a}, size=({size},))",
        "F.interpolate({a}, scale_factor=2.3)",
        "F.interpolate({a}, size=({half},), mode='{smooth}')",
        "F.interpolate({a}, scale_factor=1.5, mode='{smooth}', align_corners=True)",
        "F.interpolate({a}, size=({size},), mode='nearest-exact')",
        "F.interpolate({a}, size=({size},), mode='bicubic')",
    )
    p.need(a.rank == 4 or "bicubic" not in form)
    return str(form).format(a=a.name, size=size, half=half, smooth=smooth)


@op()
def adaptive_pool(p: Pick) -> str:
    a = p.real(3, 4)
    n = a.rank - 2
    return f"F.adaptive_{p.one('avg', 'max')}_pool{n}d({a.name}, {p.one(4, 1, 3, 7)})"


@op(exact=True)
def circular_pad(p: Pick) -> str:
    a = p.real(3, 4)
    widths = [p.one(1, 0, 2) for _ in range(2 * (a.rank - 2))]
    return f"F.pad({a.name}, ({', '.join(map(str, widths))}), mode='circular')"


@op()
def computed_weight(p: Pick) -> str:
    """The weight's filters, channels or window have a size of the input's."""
    a = p.real(3, 3)
    form = p.one(
        "F.conv1d({a}, {a}[:, :, :2])",
        "F.conv1d({a}, {a}[:1], padding=2)",
        "F.conv1d({a}, {a}[:2, :, :3] * 0.5, dilation=2, padding=2)",
        "F.conv_transpose1d({a}, {a}[:1].transpose(0, 1))",
        "F.conv_transpose1d({a}, {a}[:1, :, :2].transpose(0, 1), stride=2)",
        "F.conv2d({a}[:, None], {a}[:2, None, :2, :2])",
    )
    return str(form).format(a=a.name)


@op()
def complex_numbers(p: Pick) -> str:
    a = p.real(1, 4)
    form = p.one(
        "(torch.complex({a}.float(), {a}.float() + 1) * torch.complex({a}.float(), -{a}.float())).imag",
        "torch.polar({a}.float().abs(), {a}.float()).real",
        "torch.view_as_real(torch.complex({a}.float(), {a}.float()).conj() * 2)",
        "torch.complex({a}.float(), {a}.float() * 2).abs()",
        "torch.fft.rfft({a}.float()).abs()",
        "torch.view_as_real(torch.fft.fft({a}.float()))",
        "torch.fft.irfft(torch.fft.rfft({a}.float()), n={n})",
    )
    return str(form).format(a=a.name, n=a.size(a.rank - 1))
