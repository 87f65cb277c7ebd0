"""The tables: on the terminal, and docs/coverage.md with every case that doesn't pass and its reason."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.outcome import VERDICTS, Outcome, Suite, Verdict

DOCUMENT = Path(__file__).parents[2] / "docs" / "coverage.md"

_HEAD = """# Coverage

Standard suites of others, each case compiled through the whole road (front end, passes, kernels, artifact) and run; its numbers are
compared with the suite's own. Written by `make conformance`; how a suite is added stands in `tests/conformance/__init__.py`.

* **passed**: the numbers are right. **refused**: a typed error says what isn't supported, before any number. **wrong**: other numbers.
  **crashed**: anything else, the end of the process included, or an op that takes more than 10 s of a
  processor. Wrong and crashed are errors of the compiler.
* **check**: cases in which `llmos check` said something else than the compile then did.
"""


@dataclass(frozen=True)
class Result:
    """All outcomes of a suite."""

    suite: Suite
    outcomes: Sequence[Outcome]

    def count(self, verdict: Verdict) -> int:
        return sum(outcome.verdict == verdict for outcome in self.outcomes)

    @property
    def num_disagreements(self) -> int:
        return sum(outcome.check_disagrees for outcome in self.outcomes)

    @property
    def failed(self) -> bool:
        """Whether the suite shows an error of the compiler."""
        return self.count("wrong") + self.count("crashed") + self.num_disagreements > 0


def table(results: Sequence[Result]) -> str:
    """One line a suite, as a Markdown table."""
    lines = ["| suite | cases | passed | % | refused | wrong | crashed | check |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for result in results:
        total, passed = len(result.outcomes), result.count("passed")
        counts = [str(result.count(verdict)) for verdict in VERDICTS]
        percent = f"{100 * passed / max(1, total):.1f}"
        lines.append(f"| {result.suite.title} | {' | '.join([str(total), counts[0], percent, *counts[1:]])} | {result.num_disagreements} |")
    return "\n".join(lines)


def reasons(result: Result, verdicts: Sequence[Verdict] = ("crashed", "wrong", "refused")) -> str:
    """The cases that don't pass, grouped by reason, the largest groups first."""
    groups: dict[tuple[Verdict, str], list[str]] = defaultdict(list)
    for outcome in result.outcomes:
        if outcome.verdict in verdicts:
            groups[outcome.verdict, general(outcome.reason)].append(outcome.case)
    ordered = sorted(groups.items(), key=lambda item: (verdicts.index(item[0][0]), -len(item[1]), item[0][1]))
    return "\n".join(
        f"* **{verdict}** ({len(cases)}): {reason}  \n  {', '.join(f'`{case}`' for case in sorted(cases))}"
        for (verdict, reason), cases in ordered
    )


def general(reason: str) -> str:
    """A reason without what is particular to one case: quoted names, places in files, numbers; of several problems the first."""
    reason = re.sub(r" ?\(/[^()]*:\d+: .*\)", "", reason)
    reason = re.sub(r"^.* uses ops that can't be compiled yet: .* First: ", "", reason)
    reason = re.sub(r"(?<!\w)'[^']*'(?!\w)", "'…'", reason)
    return re.sub(r"\b\d+\b", "n", reason).replace("|", "/")


def disagreements(result: Result) -> str:
    return "\n".join(
        f"* check says {outcome.checked}, compile {outcome.verdict}: `{outcome.case}` {outcome.reason}"
        for outcome in result.outcomes
        if outcome.check_disagrees
    )


def listed(document: Path = DOCUMENT) -> frozenset[str]:
    """Names of the cases that the document lists as not passing."""
    return frozenset(re.findall(r"`([^`\s]+)`", document.read_text(encoding="utf-8")))


def write(results: Sequence[Result], document: Path = DOCUMENT) -> None:
    """Write the document anew."""
    parts = [_HEAD, table(results), ""]
    for result in results:
        parts += [f"## {result.suite.title}\n", reasons(result) or "Every case passes.", ""]
        if result.num_disagreements:
            parts += ["Where `llmos check` says something else:\n", disagreements(result), ""]
    document.write_text("\n".join(parts), encoding="utf-8")


def summary(results: Sequence[Result]) -> Mapping[str, int]:
    """Totals over all suites by verdict."""
    return Counter(outcome.verdict for result in results for outcome in result.outcomes)
