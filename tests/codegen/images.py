"""Convolutions channels last as the pass gives them to the code generator, written as linalg text, and eager torch beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from llmos.compiler.backends.cpu.backend import CpuBackend
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.planning import passes_of
from llmos.passes.winograd import Winograd
from llmos.runtime.program import Program

from .programs import V4, compile_text

AXES = "dhw"


@dataclass(frozen=True)
class Convolution:
    """y = act(conv(x) + bias [+ residual]), x [n, spatial..., c], weight [kernel..., c / groups, out]; groups: [g, ..] on both."""

    channels: int
    out: int
    kernel: tuple[int, ...]
    image: tuple[int, ...]
    stride: int = 1
    dilation: int = 1
    padding: int = 0
    groups: int = 1
    relu: bool = True
    residual: bool = False

    @property
    def spatial(self) -> tuple[int, ...]:
        """Sizes of the output image."""
        reach = [self.dilation * (k - 1) + 1 for k in self.kernel]
        return tuple((size + 2 * self.padding - r) // self.stride + 1 for size, r in zip(self.image, reach, strict=True))

    def weights(self, seed: int = 0) -> Mapping[str, np.ndarray]:
        """weight [kernel..., (g,) c / g, (g,) out / g] and bias [(g,) out / g]."""
        rng = np.random.default_rng(seed)
        per, out = self.channels // self.groups, self.out // self.groups
        grouped = (self.groups,) if self.groups > 1 else ()
        shape = (*grouped, *self.kernel, per, out)
        return {
            "w": (rng.standard_normal(shape) / np.sqrt(per * np.prod(self.kernel))).astype(np.float32),
            "b": rng.standard_normal((*grouped, out)).astype(np.float32),
        }

    def inputs(self, batch: int, seed: int = 1) -> list[np.ndarray]:
        rng = np.random.default_rng(seed)
        arrays = [rng.standard_normal((batch, *self.image, *self._channels(self.channels))).astype(np.float32)]
        if self.residual:
            arrays.append(rng.standard_normal((batch, *self.spatial, *self._channels(self.out))).astype(np.float32))
        return arrays

    def _channels(self, count: int) -> tuple[int, ...]:
        return (self.groups, count // self.groups) if self.groups > 1 else (count,)

    def eager(self, weights: Mapping[str, np.ndarray], inputs: Sequence[np.ndarray]) -> np.ndarray:
        """The same by torch, in float64."""
        rank = len(self.kernel)
        function = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d, 3: torch.nn.functional.conv3d}[rank]
        x = torch.from_numpy(inputs[0]).double().flatten(1 + rank).movedim(-1, 1)
        w = torch.from_numpy(weights["w"]).double()
        w = w if self.groups > 1 else w[None]
        w = w.movedim(-1, 1).movedim(-1, 2).flatten(0, 1)  # [g * out, c / g, kernel...]
        bias = torch.from_numpy(weights["b"]).double().flatten()
        y = function(x, w, bias, self.stride, self.padding, self.dilation, self.groups).movedim(1, -1)
        y = y.unflatten(-1, self._channels(self.out))
        if self.residual:
            y = y + torch.from_numpy(inputs[1]).double()
        return (torch.relu(y) if self.relu else y).numpy()

    def compile(self, weights: Mapping[str, np.ndarray], target: str = V4, winograd: Literal["", "2", "4"] = "") -> Program:
        """`winograd`: the side of its tiles; by the direct sum where it isn't given."""
        default = passes_of(CompileOptions(winograd=bool(winograd)), CpuBackend())
        passes = [Winograd(winograd) if isinstance(each, Winograd) and winograd else each for each in default]
        return compile_text(self.text(), weights, target, passes)

    # -- linalg
    def text(self) -> str:
        """The module, with a symbolic batch."""
        outer = "g, " if self.groups > 1 else ""
        axes = AXES[-len(self.kernel) :]
        loops = ["n", *[f"o{a}" for a in axes], *(["g"] if outer else []), "oc", *[f"k{a}" for a in axes], "ic"]
        windows = [f"o{a} * {self.stride} + k{a} * {self.dilation}" for a in axes]
        head = ", ".join(loops)
        places = ", ".join(f"o{a}" for a in axes)
        maps = [
            f"affine_map<({head}) -> (n, {', '.join(windows)}, {outer}ic)>",
            f"affine_map<({head}) -> ({outer}{', '.join(f'k{a}' for a in axes)}, ic, oc)>",
            f"affine_map<({head}) -> (n, {places}, {outer}oc)>",
        ]
        parallel = len(loops) - len(axes) - 1
        kinds = ", ".join(['"parallel"'] * parallel + ['"reduction"'] * (len(axes) + 1))
        pointwise = ", ".join(['"parallel"'] * parallel)
        identity = ", ".join(f"d{i}" for i in range(parallel))
        bias = ", ".join(f"d{i}" for i in range(parallel - (2 if outer else 1), parallel))
        y = self._tensor("?", self.spatial, self.out)
        reads = ["%sum", "%b", *(["%r"] if self.residual else [])]
        own = [f"affine_map<({identity}) -> ({each})>" for each in (identity, bias, *[identity] * (1 + self.residual))]
        arguments = ["%x: " + self._tensor("?", self.image, self.channels) + self._input("x", self.image, self.channels)]
        if self.residual:
            arguments.append("%r: " + y + self._input("r", self.spatial, self.out))
        arguments += [f"%{name}: {self._kind(array)} {self._weight(name, array)}" for name, array in self.weights().items()]
        return f"""
        module attributes {{llmos.symbols = {{batch = array<i64: 1, 64>}}}} {{
          func.func @main({", ".join(arguments)}) -> ({y} {{llmos.name = "y", llmos.dtype = "float32"}}) {{
            %zero = arith.constant 0.0 : f32
            %c0 = arith.constant 0 : index
            %n = tensor.dim %x, %c0 : {self._tensor("?", self.image, self.channels)}
            {self._pad()}
            %e = tensor.empty(%n) : {y}
            %f = linalg.fill ins(%zero : f32) outs(%e : {y}) -> {y}
            %sum = linalg.generic {{indexing_maps = [{", ".join(maps)}], iterator_types = [{kinds}]}}
              ins(%p, %w : {self._padded}, {self._kind(self.weights()["w"])}) outs(%f : {y}) {{
              ^bb0(%a: f32, %c: f32, %acc: f32):
                %m = arith.mulf %a, %c : f32
                %s = arith.addf %m, %acc : f32
                linalg.yield %s : f32 }} -> {y}
            %y = linalg.generic {{indexing_maps = [{", ".join(own)}], iterator_types = [{pointwise}]}}
              ins({", ".join(reads)} : {y}, {self._kind(self.weights()["b"])}{f", {y}" if self.residual else ""}) outs(%e : {y}) {{
              ^bb0(%a: f32, %c: f32{", %d: f32" if self.residual else ""}, %o: f32):
                %s = arith.addf %a, %c : f32
                {"%t = arith.addf %s, %d : f32" if self.residual else ""}
                %u = arith.maximumf {"%t" if self.residual else "%s"}, {"%zero" if self.relu else ("%t" if self.residual else "%s")} : f32
                linalg.yield %u : f32 }} -> {y}
            return %y : {y} }} }}
        """

    def _tensor(self, batch: str, image: Sequence[int], channels: int) -> str:
        return f"tensor<{'x'.join([batch, *map(str, [*image, *self._channels(channels)])])}xf32>"

    @property
    def _padded(self) -> str:
        return self._tensor("?", [size + 2 * self.padding for size in self.image], self.channels)

    def _pad(self) -> str:
        x = self._tensor("?", self.image, self.channels)
        width = ", ".join(["0", *[str(self.padding)] * len(self.kernel), *["0"] * (2 if self.groups > 1 else 1)])
        if not self.padding:
            return f"%p = tensor.cast %x : {x} to {x}"
        indices = ", ".join(f"%i{i}: index" for i in range(len(width.split(","))))
        return f"""%p = tensor.pad %x low[{width}] high[{width}] {{
              ^bb0({indices}):
                tensor.yield %zero : f32 }} : {x} to {self._padded}"""

    def _input(self, name: str, image: Sequence[int], channels: int) -> str:
        shape = ", ".join(['"batch"', *map(str, [*image, *self._channels(channels)])])
        return f' {{llmos.kind = "input", llmos.name = "{name}", llmos.dtype = "float32", llmos.shape = [{shape}]}}'

    @staticmethod
    def _kind(array: np.ndarray) -> str:
        return f"tensor<{'x'.join(map(str, array.shape))}xf32>"

    @staticmethod
    def _weight(name: str, array: np.ndarray) -> str:
        return f'{{llmos.kind = "weight", llmos.name = "{name}", llmos.dtype = "float32", llmos.shape = {list(array.shape)}}}'
