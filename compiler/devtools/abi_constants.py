"""`python -m llmos.compiler.devtools.abi_constants`: writes runtime/native/abi.py, the numbers of the C headers, as a C compiler sees them.

abi.h (what generated code relies on), llmos.h (the C API) and core.h (limits of the core) are the only definitions; Python reads these.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from llmos.runtime.errors import UserError

NATIVE = Path(__file__).resolve().parents[2] / "runtime" / "native"
MODULE = NATIVE / "abi.py"

# Name in Python -> what it is in C.
CONSTANTS: dict[str, dict[str, str]] = {
    "What a kernel, a launch and an entry return.": {
        "OK": "LLMOS_OK",
        "INDEX_OUT_OF_RANGE": "LLMOS_INDEX_OUT_OF_RANGE",
        "OUT_OF_MEMORY": "LLMOS_OUT_OF_MEMORY",
        "BAD_ARGUMENTS": "LLMOS_BAD_ARGUMENTS",
        "INTERNAL": "LLMOS_INTERNAL",
        "SIZE_OUT_OF_RANGE": "LLMOS_SIZE_OUT_OF_RANGE",
    },
    "What a function of llmos.h may return beside these.": {
        "ERROR_ARTIFACT": "LLMOS_ERROR_ARTIFACT",
        "ERROR_INPUT": "LLMOS_ERROR_INPUT",
        "ERROR_STRIDES": "LLMOS_ERROR_STRIDES",
        "ERROR_DEVICE": "LLMOS_ERROR_DEVICE",
    },
    "What an object may rely on.": {"ABI_VERSION": "LLMOS_ABI_VERSION"},
    "Flags of llmos.h.": {
        "TRUST_ALWAYS": "LLMOS_TRUST_ALWAYS",
        "POISON_ARENA": "LLMOS_POISON_ARENA",
    },
    "Byte offsets in llmos_context.": {
        "CONTEXT_WEIGHTS": "offsetof(llmos_context, weights)",
        "CONTEXT_ARENA": "offsetof(llmos_context, arena)",
        "CONTEXT_LAUNCH": "offsetof(llmos_context, launch)",
        "CONTEXT_THREADS": "offsetof(llmos_context, num_threads)",
        "CONTEXT_DEVICE": "offsetof(llmos_context, device)",
        "CONTEXT_STREAM": "offsetof(llmos_context, stream)",
        "CONTEXT_BYTES": "sizeof(llmos_context)",
    },
    "Byte offsets in llmos_device.": {
        "DEVICE_COPY": "offsetof(llmos_device, copy)",
        "DEVICE_SYNCHRONIZE": "offsetof(llmos_device, synchronize)",
        "DEVICE_LAUNCH": "offsetof(llmos_device, launch)",
    },
    "Byte offsets in llmos_grid.": {
        "GRID_BLOCKS": "offsetof(llmos_grid, blocks)",
        "GRID_THREADS": "offsetof(llmos_grid, threads)",
        "GRID_SHARED_BYTES": "offsetof(llmos_grid, shared_bytes)",
        "GRID_DISPATCH": "offsetof(llmos_grid, dispatch)",
        "GRID_BYTES": "sizeof(llmos_grid)",
    },
    "Byte offsets in DLTensor.": {
        "TENSOR_DATA": "offsetof(DLTensor, data)",
        "TENSOR_NDIM": "offsetof(DLTensor, ndim)",
        "TENSOR_SHAPE": "offsetof(DLTensor, shape)",
        "TENSOR_OFFSET": "offsetof(DLTensor, byte_offset)",
        "TENSOR_BYTES": "sizeof(DLTensor)",
    },
    "Byte offsets in TVMFFIAny, and its type indices.": {
        "ANY_VALUE": "offsetof(TVMFFIAny, v_ptr)",
        "ANY_BYTES": "sizeof(TVMFFIAny)",
        "TYPE_NONE": "LLMOS_TYPE_NONE",
        "TYPE_DLTENSOR_PTR": "LLMOS_TYPE_DLTENSOR_PTR",
    },
    "Of artifacts.": {
        "FORMAT": "FORMAT",
        "OLDEST_FORMAT": "OLDEST_FORMAT",
        "ALIGNMENT": "ALIGNMENT",
        "CHUNK_BYTES": "CHUNK_BYTES",
        "MAX_NDIM": "MAX_NDIM",
        "MAX_SYMBOLS": "MAX_SYMBOLS",
    },
}

_HEAD = '''"""The numbers of abi.h, llmos.h and core.h. Edit the headers, then run `python -m llmos.compiler.devtools.abi_constants`."""
'''


def module_text(compiler: str = "cc") -> str:
    """What runtime/native/abi.py should be. Raises UserError where there is no C compiler or the headers lack a name."""
    values = _evaluated([expression for group in CONSTANTS.values() for expression in group.values()], compiler)
    lines = [_HEAD]
    for title, group in CONSTANTS.items():
        lines += [f"# {title}", *(f"{name} = {values[expression]}" for name, expression in group.items()), ""]
    return "\n".join(lines)


def _evaluated(expressions: list[str], compiler: str) -> dict[str, int]:
    prints = "\n".join(f'  printf("%lld\\n", (long long)({expression}));' for expression in expressions)
    source = f'#include "core.h"\n#include <stddef.h>\n#include <stdio.h>\n\nint main(void) {{\n{prints}\n  return 0;\n}}\n'
    with tempfile.TemporaryDirectory(prefix="llmos-abi-") as folder:
        program = Path(folder) / "constants"
        program.with_suffix(".c").write_text(source)
        command = [
            compiler,
            "-std=c11",
            "-I",
            str(NATIVE),
            "-I",
            str(NATIVE / "include"),
            str(program.with_suffix(".c")),
            "-o",
            str(program),
        ]
        try:
            built = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise UserError(f"can't run the C compiler `{compiler}`: {error.strerror}; install one or name another") from error
        if built.returncode:
            raise UserError(f"the headers of {NATIVE} don't compile: {built.stderr.strip()}")
        numbers = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split()
    return dict(zip(expressions, map(int, numbers), strict=True))


def main() -> int:
    MODULE.write_text(module_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
