"""A process that compiles one LLVM module: text on standard input, the object on standard output.

LLVM ends its process on some errors; in a process of its own that becomes a PassError.
"""

from __future__ import annotations

import subprocess
import sys

from llmos.compiler.codegen.llvm import compile_object
from llmos.compiler.target import Target
from llmos.runtime.errors import LlmosError, PassError

_FAILED = 3


def compile_in_child(module: tuple[Target, str]) -> bytes:
    """The object of (target, LLVM IR text), made by a child process. Raises PassError."""
    target, text = module
    command = [sys.executable, "-m", "llmos.compiler.worker", target.name]
    child = subprocess.run(command, input=text.encode(), capture_output=True, check=False)
    if child.returncode == 0:
        return child.stdout
    last = child.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
    raise PassError(last[0] if child.returncode == _FAILED else f"LLVM ended its process for {target.name}: {last[0]}")


def main(target_name: str) -> int:
    try:
        data = compile_object(sys.stdin.read(), Target.parse(target_name))
    except LlmosError as error:
        sys.stderr.write(" ".join(str(error).split()))
        return _FAILED
    sys.stdout.buffer.write(data)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
