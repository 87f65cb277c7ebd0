"""Weights computed at compile time, by running their own kernels on the machine that compiles, whatever the target."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from llmos.compiler.backends.base import Planned
from llmos.compiler.backends.lowering import lower
from llmos.compiler.backends.options import CompileOptions
from llmos.compiler.backends.registry import get_backend
from llmos.compiler.execution.native import call_entry
from llmos.compiler.ir.attributes import FOLD
from llmos.compiler.ir.bindings import ir
from llmos.compiler.ir.functions import make_public
from llmos.compiler.ir.weights import Weight
from llmos.passes import PipelineOptions, run_pipeline
from llmos.runtime.artifact.dtypes import DTYPES

HOST = "cpu"  # backend whose code runs in the compiler's process


def folded_weights(module: ir.Module, weights: Mapping[str, Weight], options: CompileOptions) -> dict[str, Weight]:
    """What fold-weight-computation put aside, compiled for this machine and run when it is first read; the function leaves the module."""
    alone = _taken_out(module)
    if alone is None:
        return {}
    host = get_backend(HOST)
    plain = CompileOptions(target="native", cache=options.cache, repro=options.repro)
    passes = [*host.dispatch_passes(plain), *host.plan_passes(plain)]
    run_pipeline(alone, passes, options=PipelineOptions(None, options.repro), context=host.context(plain))
    return _evaluated_on_demand(host.plan(alone, weights, [str(step) for step in passes]), weights, plain)


def _taken_out(module: ir.Module) -> ir.Module | None:
    """The function that computes weights, as the entry of a module of its own."""
    with module.context, ir.Location.unknown():
        fold = next((op.operation for op in module.body.operations if FOLD in op.operation.attributes), None)
        if fold is None:
            return None
        alone = ir.Module.create()
        with ir.InsertionPoint(alone.body):
            main = fold.clone()
        del main.attributes[FOLD]
        make_public(main)
        main.attributes["sym_name"] = ir.StringAttr.get("main")
        fold.erase()
    return alone


def _evaluated_on_demand(planned: Planned, weights: Mapping[str, Weight], options: CompileOptions) -> dict[str, Weight]:
    entry = planned.record.entries[0]

    @functools.cache
    def outputs() -> list[np.ndarray]:
        host = get_backend(HOST)
        code = lower(planned, host.targets(options.target)[0], options, host)
        assert isinstance(code, bytes)
        arrays = [np.empty([int(d) for d in spec.shape], DTYPES[spec.dtype].storage) for spec in entry.outputs]
        call_entry(code, entry.symbol, [np.ascontiguousarray(weights[spec.name].array) for spec in entry.inputs], arrays)
        return arrays

    def load(number: int) -> Callable[[], np.ndarray]:
        return lambda: outputs()[number]

    return {spec.name: Weight(spec.dtype, tuple(int(d) for d in spec.shape), load(i)) for i, spec in enumerate(entry.outputs)}
