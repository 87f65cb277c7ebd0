"""`python -m llmos.compiler.devtools.check_types`: mypy, strict, and that it did look at every file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("compiler", "passes", "runtime", "models", "llmos")


def num_sources(root: Path = ROOT) -> int:
    """How many Python files there are to check; a folder without __init__.py is no package and not ours."""
    return sum(1 for folder in FOLDERS for path in (root / folder).rglob("*.py") if (path.parent / "__init__.py").is_file())


def main() -> int:
    run = subprocess.run([sys.executable, "-m", "mypy", "-p", "llmos"], cwd=ROOT, capture_output=True, text=True, check=False)
    print(run.stdout + run.stderr, end="")
    if run.returncode:
        return 1
    checked = re.search(r"no issues found in (\d+) source files", run.stdout)
    if not checked or int(checked[1]) < num_sources():
        print(f"mypy was to check {num_sources()} files: is stubs/llmos complete?")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
