"""The passes of the CUDA backend, phase by phase."""

from __future__ import annotations

from llmos.compiler.backends.options import CompileOptions
from llmos.passes import Pass
from llmos.passes.drop_unused_weights import DropUnusedWeights
from llmos.passes.form_dispatches import FormDispatches
from llmos.passes.label_dispatches import LabelDispatches
from llmos.passes.plan_memory import PlanMemory
from llmos.passes.truncate_activations import TruncateActivations
from llmos.passes.update_in_place import UpdateInPlace


def dispatch_passes(options: CompileOptions) -> list[Pass]:
    """Return the passes from generics to dispatches, each with its precision."""
    return [FormDispatches(), LabelDispatches(), *_arithmetic(options)]


def plan_passes(options: CompileOptions) -> list[Pass]:
    """Return the passes that decide which weights are kept, and where values lie."""
    return [DropUnusedWeights(), UpdateInPlace(), PlanMemory()]


def _arithmetic(options: CompileOptions) -> list[Pass]:
    return [TruncateActivations()] if options.precision == "bf16" else []
