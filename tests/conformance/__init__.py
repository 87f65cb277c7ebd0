"""Standard suites of others, run through the whole compiler: what passes, what is refused and why, and that nothing is wrong.

    python -m tests.conformance                      every suite; prints the tables, writes docs/coverage.md
    python -m tests.conformance onnx-node --only lstm --no-write     some cases of one suite

To add a suite: write a class with the members of `outcome.Suite` (its cases by name, and how to run one: `outcome.judge` turns what
happens into an Outcome, `compiled.run_compiled` runs an imported model through kernels and artifact), and name it in `suites.all_suites`.
The runner (`workers.py`) runs cases in worker processes, so that a case that ends or hangs its process is one failed case; `report.py`
prints and writes the tables. A fixed sample of each suite belongs in a test file here, `test_<suite>.py`, for CI.
"""

OPT_LEVEL = "LLMOS_TEST_OPT_LEVEL"  # environment variable, for worker processes too: LLVM's level of code generation, 0 if it isn't set
