"""A process that compiles LLVM modules, one at a time: a target's name and a module's text in, an object out.

LLVM ends its process on some errors; in a process of its own that becomes a PassError.
"""

from __future__ import annotations

from llmos.compiler.backends.cpu.emulation import emulate
from llmos.compiler.backends.cpu.target import CpuTarget
from llmos.compiler.codegen.llvm import compile_object
from llmos.runtime.children import Children, serve
from llmos.runtime.errors import PassError

_CHILDREN = Children("llmos.compiler.backends.cpu.worker")


def compile_in_child(module: tuple[CpuTarget, str]) -> bytes:
    """Return the object of (target, LLVM IR text), made by a child process. Raises PassError."""
    target, text = module
    answer = _CHILDREN.ask(f"{target.name}\n{text}".encode())
    if answer.failed:
        raise PassError(answer.said)
    if answer.fault:
        detail = f": {answer.said}" if answer.said else ""
        raise PassError(f"LLVM ended its process for {target.name} ({answer.fault}){detail}")
    return answer.output


def _compiled(request: bytes) -> bytes:
    target_name, text = request.decode().split("\n", 1)
    target = CpuTarget.parse(target_name)
    return compile_object(emulate(text) if target.emulates else text, target)


if __name__ == "__main__":
    serve(_compiled)
