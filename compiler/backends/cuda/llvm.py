"""LLVM IR of kernels to PTX, and PTX to what ptxas makes of it. No MLIR here, so that workers start fast.

Numbers: as on a CPU no fast-math flag is set anywhere, and PTX says `.rn` on every operation, so that ptxas fuses nothing.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import llvmlite.binding as llvmlite

from llmos.compiler.backends.cuda.target import CudaTarget
from llmos.compiler.codegen.llvm import emit_assembly
from llmos.runtime.errors import PassError

MATH_CALLS = re.compile(r"\.extern \.func .*?(__nv_\w+|\w+)\s*\(", re.DOTALL)


def compile_ptx(text: str, target: CudaTarget) -> str:
    """Optimize LLVM IR text of kernels and return PTX; the same input gives the same text. Raises PassError if the text is invalid or
    calls a function that PTX has not."""
    ptx = emit_assembly(text, target)
    calls = sorted(set(MATH_CALLS.findall(ptx)))
    if calls:
        raise PassError(f"the kernels call {', '.join(calls)}; run expand-math before the LLVM stage")
    return ptx


@dataclass(frozen=True)
class KernelReport:
    """What ptxas says of one kernel. shared_bytes: static ones; what a launch gives comes on top."""

    name: str
    registers: int
    spilled_bytes: int
    stack_bytes: int
    shared_bytes: int


def find_ptxas() -> str | None:
    """Return the path of ptxas: CUDA's on the PATH, or that of the packages nvidia-cuda-nvcc and triton where they are installed."""
    found = shutil.which("ptxas")
    if found:
        return found
    site = Path(llvmlite.__file__).resolve().parents[2]
    patterns = ("nvidia/*/bin/ptxas", "triton/backends/nvidia/bin/ptxas")
    return next((str(path) for pattern in patterns for path in sorted(site.glob(pattern))), None)


def assemble(ptx: str, chip: str, ptxas: str) -> tuple[bytes, list[KernelReport]]:
    """Return the cubin of PTX, and a report of each kernel. Raises PassError with what ptxas says."""
    with tempfile.TemporaryDirectory(prefix="llmos-ptxas-") as folder:
        source, cubin = Path(folder) / "kernels.ptx", Path(folder) / "kernels.cubin"
        source.write_text(ptx)
        command = [ptxas, f"--gpu-name={chip}", "--verbose", "--output-file", str(cubin), str(source)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            said = (result.stderr or result.stdout).strip().splitlines() or ["no message"]
            raise PassError(f"ptxas refuses the kernels: {said[0]}")
        return cubin.read_bytes(), _reports(result.stderr + result.stdout)


_COMPILED = re.compile(r"Compiling entry function '(\S+)' for")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def _reports(said: str) -> list[KernelReport]:
    found = []
    for part in _COMPILED.split(said)[1:][0::2]:
        body = said.split(f"'{part}'", 1)[1].split("Compiling entry function", 1)[0]
        spills, used, shared = _SPILLS.search(body), _USED.search(body), _SHARED.search(body)
        stack, stores, loads = (int(group) for group in spills.groups()) if spills else (0, 0, 0)
        found.append(KernelReport(part, int(used[1]) if used else 0, stores + loads, stack, int(shared[1]) if shared else 0))
    return found
