"""Python's numbers are those of the C headers: the generated module is up to date, and ctypes lays structures out as C does."""

from __future__ import annotations

import ctypes

import pytest

from llmos.compiler.devtools.abi_constants import MODULE, module_text
from llmos.compiler.execution import native as evaluate
from llmos.runtime.errors import UserError
from llmos.runtime.native import abi


def test_the_generated_module_is_up_to_date() -> None:
    assert MODULE.read_text() == module_text(), "run python -m llmos.compiler.devtools.abi_constants"


def test_without_a_compiler_it_says_so() -> None:
    with pytest.raises(UserError, match="can't run the C compiler `no-such-cc`"):
        module_text("no-such-cc")


def test_structures_in_python_lie_as_in_c() -> None:
    context, tensor, argument = evaluate._Context, evaluate._Tensor, evaluate._Any
    assert (context.weights.offset, context.arena.offset) == (abi.CONTEXT_WEIGHTS, abi.CONTEXT_ARENA)
    assert (context.launch.offset, context.num_threads.offset) == (abi.CONTEXT_LAUNCH, abi.CONTEXT_THREADS)
    assert (context.device.offset, context.stream.offset) == (abi.CONTEXT_DEVICE, abi.CONTEXT_STREAM)
    assert (tensor.data.offset, tensor.ndim.offset, tensor.shape.offset) == (abi.TENSOR_DATA, abi.TENSOR_NDIM, abi.TENSOR_SHAPE)
    assert tensor.byte_offset.offset == abi.TENSOR_OFFSET
    assert argument.value.offset == abi.ANY_VALUE
    sizes = [ctypes.sizeof(each) for each in (context, tensor, argument)]
    assert sizes == [abi.CONTEXT_BYTES, abi.TENSOR_BYTES, abi.ANY_BYTES]
