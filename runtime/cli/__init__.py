"""The `llmos` command line. Importing it imports click and nothing heavier."""

from llmos.runtime.cli.main import main

__all__ = ["main"]
