"""`python -m llmos.compiler.devtools.gpu_report MODEL.llmos`: registers and spills of an artifact's GPU kernels, as ptxas reports them.

Prints a table for docs/gpu.md. Needs a ptxas: CUDA's on the PATH, or that of the package nvidia-cuda-nvcc.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmos.compiler.backends.cuda.llvm import assemble, find_ptxas
from llmos.runtime.artifact.reader import Artifact
from llmos.runtime.errors import UserError


def report(path: Path) -> list[str]:
    """Return the lines of the table: a kernel each, a column each target. Raises UserError without a ptxas or without kernels."""
    artifact, ptxas = Artifact.open(path), find_ptxas()
    variants = [code for code in artifact.manifest.code if "ptx" in code.modules]
    if ptxas is None or not variants:
        raise UserError("no ptxas here" if ptxas is None else f"{path} has no kernels of a GPU")
    found: dict[str, list[str]] = {}
    for code in variants:
        ptx = bytes(artifact.member(code.modules["ptx"])).decode()
        for each in assemble(ptx, code.target.partition(":")[2], ptxas)[1]:
            found.setdefault(each.name, []).append(f"{each.registers}, {each.spilled_bytes}")
    labels = {kernel.name: f"{kernel.name} {kernel.details.get('label', '')}" for kernel in artifact.manifest.kernels}
    rows = [f"| {labels[name]} | {' | '.join(found[name])} |" for name in labels if name in found]
    return [f"| kernel | {' | '.join(code.target for code in variants)} |", "|---" * (1 + len(variants)) + "|", *rows]


def main() -> int:
    try:
        print("\n".join(report(Path(sys.argv[1]))))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
