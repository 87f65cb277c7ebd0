"""The `llmos` command line. Importing it imports click and nothing heavier."""

from llmos.runtime.cli.command import main

__all__ = ["main"]
