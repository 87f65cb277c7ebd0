"""`python -m llmos.runtime.cli`: the `llmos` command where its script is not on the path."""

from llmos.runtime.cli import main

main()
