"""What a user asks of a compile, checked when it is made."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmos.compiler.ir.tiling import NO_TILINGS, Tilings
from llmos.compiler.quant.scheme import parse_scheme
from llmos.runtime.errors import UserError

PRECISIONS = ("fp32", "bf16")
KV_TYPES = ("bf16", "fp32", "int8")  # of cached keys and values
EMBEDDINGS = ("last", "mean")
MULTIPLIED: Mapping[str, tuple[str, ...]] = {"fp32": (), "bf16": ("bf16",)}  # what contractions of a precision multiply beside float32
MULTIPLICATIONS = ((), ("bf16",), ("int8",), ("bf16", "int8"))  # all that a target's code may depend on (Target.code_target)


@dataclass(frozen=True)
class CompileOptions:
    """Options of one compile.

    precision: arithmetic of contractions, "fp32" or "bf16".
    quant: scheme of quantization, such as "w8a8" (compiler/quant/scheme.py); "" quantizes nothing.
    keep: contractions that quantization leaves in float, by their numbers in quantize-contractions.
    keep_tables: weights, by name, that quantization leaves in float although they are looked up and nothing else.
    calibrate: data that quantization is fitted to: a file, or inputs in memory (compiler/calibration/data.py); None: the model's examples.
    backend: name of what makes the code (compiler/backends/registry.py); "" takes it from the target.
    target: "portable", "native" or names of targets; the backend checks them.
    dynamic: names for the dimensions that stay symbolic, in the order in which they first appear in the inputs.
    sizes: for dimensions of an ONNX model, by its own names: a range (min, max), or a size to fix it to.
    bind: inputs of an ONNX model that become constants.
    kv: what a causal language model caches keys and values as: "bf16", "fp32", "int8", or "" for bf16; "" for any other model.
    embeddings: "last" or "mean" gives a causal language model embeddings of texts: the hidden state of the last token, or the mean.
    generate: whether a causal language model generates text.
    perplexity: text file whose perplexity the accuracy report of a language model is to hold.
    random: name of an int64 input that random numbers follow from; "" refuses a model that draws any.
    name: name of the model in the artifact; "" takes it from the source.
    from_stage, stop_after: extensions of stages, those of the backend among them, which the driver checks; "" for the whole way.
    dump_ir: folder for numbered dumps of the IR after every pass that changed it.
    repro: folder for what reproduces a compiler error; None writes nothing.
    jobs: processes that compile code at the same time; 0 takes LLMOS_JOBS or the number of cores.
    cache: whether compiled code is kept for later runs (LLMOS_CACHE).
    accuracy report: whether the compiled code is run beside the reference, and what that shows kept in the artifact (docs/proof.md).
    winograd: whether convolutions may be computed by Winograd's algorithm, which rounds a little more (docs/codegen.md).
    budget: the largest error of an output, relative to its scale, that a compile lets pass; None: what the precision needs.
    min_cosine: the smallest cosine of an output with the reference's that a compile lets pass, where that is judged instead of its error;
        None: 0.99 for quantized models without a budget, and no such bound for others.
    max_kl, min_top1: likewise of an output of logits, the largest divergence of a row and the smallest part of rows with the same best one.
    tune: seconds of a measured search for shapes of tiles, on this machine; None: the analytic model's.
    tilings: what a measured search chose for some dispatches (compiler/ir/tiling.py); others are left to the analytic model.
    """

    precision: str = "fp32"
    quant: str = ""
    keep: tuple[int, ...] = ()
    keep_tables: tuple[str, ...] = ()
    calibrate: Path | Sequence[Any] | None = None
    backend: str = ""
    target: str = "portable"
    dynamic: tuple[str, ...] = ()
    sizes: Mapping[str, tuple[int, int] | int] = field(default_factory=dict)
    bind: Mapping[str, float | int] = field(default_factory=dict)
    kv: str = ""
    embeddings: str = ""
    generate: bool = True
    perplexity: Path | None = None
    random: str = ""
    name: str = ""
    from_stage: str = ""
    stop_after: str = ""
    dump_ir: Path | None = None
    repro: Path | None = Path("repro")
    jobs: int = 0
    cache: bool = True
    accuracy_report: bool = True
    winograd: bool = True
    budget: float | None = None
    min_cosine: float | None = None
    max_kl: float | None = None
    min_top1: float | None = None
    tune: float | None = None
    tilings: Tilings = NO_TILINGS

    @property
    def figure(self) -> tuple[str, float] | None:
        """Return what a budget bounds instead of the largest error, by its name in `Tolerance`."""
        given = {"cosine": self.min_cosine, "kl": self.max_kl, "top1": self.min_top1}
        return next(((name, bound) for name, bound in given.items() if bound is not None), None)

    @property
    def generates_and_embeds(self) -> bool:
        """Whether a causal language model has an entry for each."""
        return bool(self.generate and self.embeddings)

    def __post_init__(self) -> None:
        one_of("precision", self.precision, PRECISIONS)
        if self.kv:
            one_of("kv", self.kv, KV_TYPES)
        if self.embeddings:
            one_of("embeddings", self.embeddings, EMBEDDINGS)
        if not self.generate and not self.embeddings:
            raise UserError("--no-generate leaves nothing of a model: say with --embeddings what a language model is to give instead")
        if not self.generate and (self.kv or self.perplexity):
            raise UserError("--no-generate makes an encoder of texts, which has neither a cache (--kv) nor a perplexity")
        if self.perplexity is not None and not (self.accuracy_report and self.perplexity.is_file()):
            wrong = "no such file" if self.accuracy_report else "it is part of the accuracy report"
            raise UserError(f"--perplexity {self.perplexity}: {wrong}")
        if self.quant:
            parse_scheme(self.quant)
        elif self.calibrate is not None:
            raise UserError("--calibrate is for quantization: say which with --quant, such as --quant w8a8")
        for name in (*self.dynamic, *self.sizes):
            if not name.isidentifier():
                raise UserError(f"dynamic dimension {name!r} is not a name: letters, digits and _")
        if self.random and not self.random.isidentifier():
            raise UserError(f"the seed's name {self.random!r} is not a name: letters, digits and _")
        if len(set(self.dynamic)) != len(self.dynamic):
            raise UserError(f"dynamic dimensions are named twice: {', '.join(self.dynamic)}")
        for name, size in self.sizes.items():
            low, high = size if isinstance(size, tuple) else (size, size)
            if not 1 <= low <= high:
                raise UserError(f"dynamic dimension {name}: a size is 1 or more, and a range goes up; not {size}")
        if self.budget is not None and not (0 <= self.budget < math.inf):
            raise UserError(f"--budget {self.budget}: give the largest relative error to allow, such as 1e-4")
        if self.min_cosine is not None and not (-1 <= self.min_cosine <= 1):
            raise UserError(f"--budget cosine>={self.min_cosine}: give a cosine of at most 1, such as 0.999")
        if self.max_kl is not None and not (0 <= self.max_kl < math.inf):
            raise UserError(f"--budget kl<={self.max_kl}: give a divergence in nats, such as 0.01")
        if self.min_top1 is not None and not (0 <= self.min_top1 <= 1):
            raise UserError(f"--budget top1>={self.min_top1}: give a part of rows of at most 1, such as 0.98")
        if sum(each is not None for each in (self.min_cosine, self.max_kl, self.min_top1)) > 1:
            raise UserError("a budget bounds one figure: a cosine, a divergence or a part of rows")
        if self.tune is not None and not (0 < self.tune < math.inf):
            raise UserError(f"--tune {self.tune}: give the seconds that the search may take, such as 30")
        if self.jobs < 0:
            raise UserError(f"jobs must be 0 or more, not {self.jobs}")


def one_of(option: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError, with the nearest choice or all of them, where `value` is none of them."""
    choices = list(choices)
    if value in choices:
        return
    close = difflib.get_close_matches(value, choices, n=1)
    hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(choices)}"
    raise UserError(f"{option} has no {value!r}; {hint}")
