"""`llmos bench`: an artifact against other engines, on this machine, in one run."""

from llmos.compiler.devtools.bench.cli import command

__all__ = ["command"]
