"""`python -m llmos.compiler.devtools.check_layers`: the import contracts of pyproject.toml, on this checkout.

import-linter reads a package from one folder and follows no links; ours is four folders under one name, so it gets a copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("compiler", "passes", "runtime", "models")


def check_layers(root: Path = ROOT) -> tuple[bool, str]:
    """Whether every contract is kept, and import-linter's report."""
    with tempfile.TemporaryDirectory(prefix="llmos-layers-") as folder:
        package = Path(folder) / "llmos"
        sources = shutil.ignore_patterns("*.so", "*.c", "*.h", "__pycache__", "build")
        shutil.copytree(root / "llmos", package, ignore=sources)
        for name in FOLDERS:
            shutil.copytree(root / name, package / name, ignore=sources)
        command = [str(Path(sys.executable).with_name("lint-imports")), "--config", str(root / "pyproject.toml"), "--no-cache"]
        run = subprocess.run(command, cwd=folder, env=_environment(folder), capture_output=True, text=True, check=False)
    return run.returncode == 0, run.stdout + run.stderr


def _environment(folder: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": folder}


def main() -> int:
    kept, report = check_layers()
    print(report[report.find("Analyzed") :] if "Analyzed" in report else report)
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
