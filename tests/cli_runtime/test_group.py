"""The command group: lazy, quick, and with errors in one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest

from llmos.runtime.cli import command
from llmos.runtime.cli import main as package_main
from llmos.runtime.cli.lazy import LazyCommand, LazyGroup
from llmos.runtime.errors import ExecutionError, InputError, UserError

Llmos = Callable[..., Any]


def test_help_lists_all_commands(llmos: Llmos) -> None:
    done = llmos("--help")
    assert done.code == 0
    for name in ("compile", "check", "run", "inspect", "serve", "trust", "opt", "bench"):
        assert f"\n  {name} " in done.out


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, llmos.runtime.cli.command as m; m.run(['--help']); print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"numpy", "torch", "torch_mlir", "llvmlite", "onnx", "transformers", "fastapi", "uvicorn", "cryptography", "rich", "tokenizers"}
    assert not heavy & set(done.stdout.splitlines())


def test_running_an_artifact_imports_no_compiler(artifacts: Any) -> None:
    run = f"m.run(['run', {str(artifacts.counts)!r}, '--text', 'a'])"
    script = f"import sys, llmos.runtime.cli.command as m; {run}; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()
    heavy = {"torch", "torch_mlir", "llvmlite", "onnx", "transformers", "fastapi", "llmos.compiler", "llmos.passes", "llmos.models"}
    assert "numpy" in modules
    assert not heavy & set(modules)


@pytest.mark.parametrize(
    ("args", "message"), [(["sevre"], "did you mean serve?"), (["xyzzy"], "there is no command 'xyzzy'; 'llmos --help'")]
)
def test_an_unknown_command_names_the_nearest(llmos: Llmos, args: list[str], message: str) -> None:
    done = llmos(*args)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err


def test_version(llmos: Llmos) -> None:
    assert llmos("--version").out.startswith("llmos 0.")


def group_raising(error: BaseException) -> LazyGroup:
    def body() -> None:
        raise error

    group = LazyGroup(table={}, help="")
    group.get_command = lambda ctx, cmd_name: click.Command(cmd_name, callback=body)  # type: ignore[method-assign]
    group._table = {"fail": LazyCommand("x:y", "")}
    return group


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("the input is wrong\nin two lines"), 2, "error: the input is wrong in two lines\n"),
        (UserError("bad"), 2, "error: bad\n"),
        (ExecutionError("it failed"), 1, "error: it failed\n"),
        (FileNotFoundError(2, "No such file", "a"), 1, "error: [Errno 2] No such file: 'a'\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ValueError("odd"), 1, "error: ValueError: odd (this is a bug of llmos: run again with --debug and report the traceback)\n"),
    ],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, message: str
) -> None:
    monkeypatch.setattr(command, "group", lambda: group_raising(error))
    assert command.run(["fail"]) == code
    assert capsys.readouterr().err.lstrip("\n") == message
    command.run(["fail", "--debug"])
    assert ("Traceback" in capsys.readouterr().err) == (code != 130)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table = {"compile": LazyCommand("llmos_no_such_module:command", "Compile.", "compile")}
    monkeypatch.setattr(command, "group", lambda: LazyGroup(table=table, help=""))
    assert command.run(["compile"]) == 2
    assert "pip install llmos[compile]" in capsys.readouterr().err


def test_the_package_gives_the_entry_point() -> None:
    with pytest.raises(SystemExit) as caught:
        package_main(["--version"])
    assert caught.value.code == 0
