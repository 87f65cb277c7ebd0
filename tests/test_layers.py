"""A module imports only what stands below it (docs/architecture.md), and the house's tools look at every file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from llmos.compiler.devtools.check_layers import FOLDERS, ROOT, check_layers


def test_every_import_contract_is_kept() -> None:
    kept, report = check_layers(ROOT)
    assert kept, report


def test_an_import_upwards_is_found(tmp_path: Path) -> None:
    import shutil

    sources = shutil.ignore_patterns("*.so", "__pycache__")
    for name in (*FOLDERS, "llmos"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=sources)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "runtime" / "errors.py").open("a") as file:
        file.write("\nimport llmos.compiler.backends.options\n")
    kept, report = check_layers(tmp_path)
    assert not kept
    assert "llmos.runtime.errors -> llmos.compiler.backends.options" in report


def test_the_type_checker_sees_every_folder() -> None:
    linked = {path.name for path in (ROOT / "stubs" / "llmos").iterdir()}
    assert linked >= {*FOLDERS, "__init__.py", "py.typed"}
    assert all((ROOT / "stubs" / "llmos" / name).exists() for name in linked)


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'torch', 'torch_mlir', 'llvmlite'}"
    program = f"import sys; from llmos.runtime.cli.command import run; run(['--help']); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
