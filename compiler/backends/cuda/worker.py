"""A process that compiles LLVM modules, one at a time: a target's name and two modules in, PTX and an object of host functions out.

LLVM ends its process on some errors; in a process of its own that becomes a PassError.
"""

from __future__ import annotations

import json

from llmos.compiler.backends.cuda.llvm import compile_ptx
from llmos.compiler.backends.cuda.target import parse_target
from llmos.compiler.codegen.llvm import compile_object
from llmos.runtime.children import Children, serve
from llmos.runtime.errors import PassError

_CHILDREN = Children("llmos.compiler.backends.cuda.worker")


def compile_in_child(target: str, device: str, host: str) -> tuple[str, bytes]:
    """Return PTX of the device's LLVM IR text and the object of the host's, made by a child process. Raises PassError."""
    answer = _CHILDREN.ask(json.dumps([target, device, host]).encode())
    if answer.failed:
        raise PassError(answer.said)
    if answer.fault:
        detail = f": {answer.said}" if answer.said else ""
        raise PassError(f"LLVM ended its process for {target} ({answer.fault}){detail}")
    ptx, data = answer.output.split(b"\0", 1)
    return ptx.decode(), data


def _compiled(request: bytes) -> bytes:
    name, device, host = json.loads(request)
    target = parse_target(name)
    return compile_ptx(device, target).encode() + b"\0" + compile_object(host, target.host)


if __name__ == "__main__":
    serve(_compiled)
