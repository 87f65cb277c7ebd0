"""A click group whose commands are named by strings and imported when one of them runs."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import click

from llmos.runtime.errors import UserError


@dataclass(frozen=True)
class LazyCommand:
    """target: "module:attribute" of a click command. help: its line in the group's help. extra: the extra of the package it needs."""

    target: str
    help: str
    extra: str | None = None

    def load(self) -> click.Command:
        """Import the command. Raises UserError that names the extra to install if packages are missing."""
        module_name, _, attribute = self.target.partition(":")
        try:
            command = getattr(import_module(module_name), attribute)
        except ImportError as error:
            raise UserError(self._missing(error)) from error
        assert isinstance(command, click.Command)
        return command

    def _missing(self, error: ImportError) -> str:
        advice = f"pip install llmos[{self.extra}]" if self.extra else "reinstall llmos"
        return f"this command needs packages that are not installed ({error.name or error}): {advice}"


class LazyGroup(click.Group):
    """Lists its commands from a table, so that --help imports none of them."""

    def __init__(self, *, table: Mapping[str, LazyCommand], help: str) -> None:
        super().__init__(name="llmos", help=help)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self._table.get(cmd_name)
        return entry.load() if entry else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if (both := " ".join(args[:2])) in self._table and len(args) > 1:  # of two words, before the command of the first
            return both, self.get_command(ctx, both), args[2:]
        if args and not args[0].startswith("-") and args[0] not in self._table:
            nearest = _nearest(args[0], [name for name in self._table if " " not in name])
            raise UserError(f"there is no command '{args[0]}'{nearest}; 'llmos --help' lists all")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._table.items()])


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f": did you mean {' or '.join(found)}?" if found else ""
