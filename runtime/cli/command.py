"""The `llmos` command: its table of commands, and error reporting."""

from __future__ import annotations

import errno
import gc
import sys
import traceback
from collections.abc import Sequence

import click

from llmos.runtime.cli.lazy import LazyCommand, LazyGroup
from llmos.runtime.errors import LlmosError, UserError

COMMANDS = {
    "compile": LazyCommand("llmos.compiler.cli.compile:command", "Compile a model into one artifact.", "compile"),
    "check": LazyCommand("llmos.compiler.cli.check:command", "Say of every op of a model whether it compiles.", "compile"),
    "run": LazyCommand("llmos.runtime.cli.run:command", "Run an artifact on inputs, texts or a prompt."),
    "chat": LazyCommand("llmos.runtime.cli.chat:command", "Talk with a chat model.", "serve"),
    "inspect": LazyCommand("llmos.runtime.cli.inspect:command", "Show what an artifact holds and where it runs."),
    "verify": LazyCommand("llmos.runtime.cli.verify:command", "Run an artifact on its accuracy report's inputs and compare."),
    "serve": LazyCommand("llmos.runtime.cli.serve:command", "Serve artifacts over HTTP.", "serve"),
    "trust": LazyCommand("llmos.runtime.cli.trust:command", "Manage the keys whose artifacts may run here."),
    "opt": LazyCommand("llmos.compiler.cli.opt:command", "Run passes on an MLIR file.", "compile"),
    "bisect": LazyCommand("llmos.compiler.cli.bisect:command", "Find the pass and dispatch where an error enters a compile.", "compile"),
    "compare": LazyCommand("llmos.compiler.cli.compare:command", "Compare an artifact with its source, dispatch by dispatch.", "compile"),
    "bench serve": LazyCommand("llmos.runtime.cli.bench_serve:command", "Measure a server under load.", "serve"),
    "bench": LazyCommand("llmos.compiler.cli.bench:command", "Measure an artifact against other engines.", "compile,bench"),
}

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130
DEBUG = "--debug"
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def group() -> click.Group:
    """The command group, for help and for tests."""
    found = LazyGroup(table=COMMANDS, help="Compile trained models ahead of time; run and serve them anywhere.")
    found.params.append(click.Option([DEBUG], is_flag=True, expose_value=False, help="Show the traceback of an error."))
    found.params.append(_version_option())
    return found


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the console script; exits with the code of `run`."""
    code = run(sys.argv[1:] if args is None else args)
    gc.freeze()  # otherwise the collector scans all of torch's objects at exit
    sys.exit(code)


def run(args: Sequence[str]) -> int:
    """Run the command line. 0, or 1 for a failure, 2 for wrong usage or input, 130 when interrupted; errors go to stderr in one line."""
    debug = DEBUG in args
    try:
        code = group().main([arg for arg in args if arg != DEBUG], prog_name="llmos", standalone_mode=False)
        return code if isinstance(code, int) else EXIT_OK
    except (Exception, KeyboardInterrupt) as error:
        if debug and not isinstance(error, (click.exceptions.Exit, click.Abort)):
            traceback.print_exc()
        return _report(error)


def _report(error: BaseException) -> int:
    """Report an error in one line, and return its exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return EXIT_USAGE
    if isinstance(error, click.ClickException):
        hint = f" (try '{error.ctx.command_path} --help')" if isinstance(error, click.UsageError) and error.ctx else ""
        return _fail(f"{error.format_message()}{hint}", EXIT_USAGE if isinstance(error, click.UsageError) else error.exit_code)
    if isinstance(error, LlmosError):
        return _fail(str(error), EXIT_USAGE if isinstance(error, UserError) else EXIT_FAILURE)
    if isinstance(error, BrokenPipeError):
        return _broken_pipe()
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return _fail(f"can't write {error.filename or 'a temporary file'}: {error.strerror}; free some space", EXIT_USAGE)
    if isinstance(error, OSError):
        return _fail(str(error), EXIT_FAILURE)
    if isinstance(error, MemoryError):
        return _fail(f"out of memory{f': {error}' if str(error) else ''}", EXIT_FAILURE)
    return _fail(f"{type(error).__name__}: {error} (this is a bug of llmos: run again with {DEBUG} and report the traceback)", EXIT_FAILURE)


def _fail(message: str, code: int) -> int:
    click.echo("error: " + " ".join(message.split()), err=True)
    return code


def _broken_pipe() -> int:
    """Handle a closed output pipe, as in `llmos inspect X | head`."""
    sys.stdout = None
    return EXIT_FAILURE


def _version_option() -> click.Option:
    def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if not value:
            return
        from importlib.metadata import version

        click.echo(f"llmos {version('llmos')}")
        ctx.exit()

    return click.Option(["--version"], is_flag=True, is_eager=True, expose_value=False, callback=show, help="Show the version and exit.")
