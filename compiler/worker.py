"""A process that compiles one LLVM module: text on standard input, the object on standard output.

LLVM ends its process on some errors; in a process of its own that becomes a PassError.
"""

from __future__ import annotations

import sys

from llmos.compiler.child import FAILED, run_child
from llmos.compiler.codegen.llvm import compile_object
from llmos.compiler.target import Target
from llmos.runtime.errors import LlmosError, PassError


def compile_in_child(module: tuple[Target, str]) -> bytes:
    """The object of (target, LLVM IR text), made by a child process. Raises PassError."""
    target, text = module
    child = run_child(__name__, [target.name], text.encode())
    if child.failed:
        raise PassError(child.said)
    if child.fault:
        detail = f": {child.said}" if child.said else ""
        raise PassError(f"LLVM ended its process for {target.name} ({child.fault}){detail}")
    return child.output


def main(target_name: str) -> int:
    try:
        data = compile_object(sys.stdin.read(), Target.parse(target_name))
    except LlmosError as error:
        sys.stderr.write(" ".join(str(error).split()))
        return FAILED
    sys.stdout.buffer.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
