"""The passes of the CPU backend, phase by phase."""

from __future__ import annotations

from llmos.compiler.backends.options import CompileOptions
from llmos.passes import Pass
from llmos.passes.form_dispatches import FormDispatches
from llmos.passes.fuse_loops import FuseLoops
from llmos.passes.label_dispatches import LabelDispatches
from llmos.passes.pack_weights import PackWeights
from llmos.passes.plan_memory import PlanMemory
from llmos.passes.recognize_attention import RecognizeAttention
from llmos.passes.tile_dispatches import TileDispatches
from llmos.passes.truncate_activations import TruncateActivations
from llmos.passes.update_in_place import UpdateInPlace
from llmos.passes.winograd import Winograd


def dispatch_passes(options: CompileOptions) -> list[Pass]:
    """Return the passes from generics to dispatches, each with its algorithm and precision."""
    return [RecognizeAttention(), FuseLoops(), FormDispatches(), *_algorithms(options), LabelDispatches(), *_arithmetic(options)]


def plan_passes(options: CompileOptions) -> list[Pass]:
    """Return the passes that decide tiles and layouts of weights, then where values lie."""
    return [*_tiles(options), PackWeights(), UpdateInPlace(), PlanMemory()]


def _algorithms(options: CompileOptions) -> list[Pass]:
    return [Winograd()] if options.winograd and options.precision == "fp32" else []


def _arithmetic(options: CompileOptions) -> list[Pass]:
    return [TruncateActivations()] if options.precision == "bf16" else []


def _tiles(options: CompileOptions) -> list[Pass]:
    """Before the weights are packed, into panels of as many columns as a tile has."""
    return [TileDispatches(options.tilings)] if options.tilings else []
