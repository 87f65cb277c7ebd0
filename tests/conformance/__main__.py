"""`python -m tests.conformance [SUITE...] [--only PART] [--jobs N] [--no-write]`: see the package's docstring. Exit code 1 on any error."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings

from tests.conformance import OPT_LEVEL
from tests.conformance.outcome import Suite
from tests.conformance.report import DOCUMENT, Result, disagreements, reasons, table, write
from tests.conformance.suites import all_suites
from tests.conformance.workers import run_cases


def main() -> int:
    suites = all_suites()
    arguments = _parse(sorted(suites))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="llmos-conformance-") as home:
        os.environ |= {"LLMOS_HOME": home, "LLMOS_CACHE": f"{home}/cache", OPT_LEVEL: "1"}
        results = [_run(suites[name], arguments) for name in arguments.suites or suites]
    for result in results:
        print(f"\n{result.suite.title}\n{reasons(result)}\n{disagreements(result)}")
    print(f"\n{table(results)}")
    if not arguments.no_write and not arguments.only and not arguments.suites:
        write(results)
        print(f"written: {DOCUMENT}")
    return int(any(result.failed for result in results))


def _parse(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"some of: {', '.join(names)}; default all")
    parser.add_argument("--only", default="", help="cases whose name has this part")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for one case")
    parser.add_argument("--no-write", action="store_true", help="leave docs/coverage.md as it is")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.suites if name not in names]
    if unknown:
        parser.error(f"no suite {unknown[0]}; there are: {', '.join(names)}")
    return arguments


def _run(suite: Suite, arguments: argparse.Namespace) -> Result:
    started = time.monotonic()
    cases = [case for case in suite.cases() if arguments.only in case]
    outcomes = []
    for outcome in run_cases(suite, cases, arguments.jobs, arguments.timeout):
        outcomes.append(outcome)
        if sys.stderr.isatty():
            print(f"\r{suite.name}: {len(outcomes)} of {len(cases)}", end="", file=sys.stderr)
    print(f"{suite.name}: {len(cases)} cases in {time.monotonic() - started:.0f} s", flush=True)
    return Result(suite, sorted(outcomes, key=lambda outcome: outcome.case))


if __name__ == "__main__":
    sys.exit(main())
