"""What becomes of one case of a suite, and what a suite is."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from llmos.runtime.errors import LlmosError, UnsupportedError, UserError

Verdict = Literal["passed", "refused", "wrong", "crashed"]
VERDICTS: tuple[Verdict, ...] = ("passed", "refused", "wrong", "crashed")

# What a case asked `llmos check`: nothing, and then what it answered.
CheckAnswer = Literal["", "compiles", "refused", "crashed"]

MAX_REASON = 500
LIMIT_S = 10.0  # for one op: code and compile time grow with the number of ops, not with sizes


@dataclass(frozen=True)
class Outcome:
    """One case.

    passed: the numbers are right. refused: a UserError or UnsupportedError said before any number what isn't supported (`reason`).
    wrong: the numbers differ. crashed: any other exception, the end of the worker process, no answer in time, or too much time.
    checked: what `llmos check` said of the same model before it was compiled.
    """

    case: str
    verdict: Verdict
    reason: str = ""
    checked: CheckAnswer = ""
    seconds: float = 0.0

    @property
    def check_disagrees(self) -> bool:
        """Whether `llmos check` promised something else than the compile then did."""
        agrees = {"refused": self.verdict == "refused", "compiles": self.verdict != "refused"}
        return self.checked != "" and not agrees.get(self.checked, False)


class Suite(Protocol):
    """Cases by name; made anew in no worker: workers are forked from a process that has called `cases`."""

    @property
    def name(self) -> str:
        """As on the command line: "onnx-node"."""
        ...

    @property
    def title(self) -> str:
        """One line for the table."""
        ...

    def cases(self) -> Sequence[str]:
        """Names of all cases; loads what all of them need."""
        ...

    def run(self, case: str) -> Outcome:
        """Run one case, in a worker process. May raise anything, hang or abort."""
        ...


def judge(case: str, difference: Callable[[], str], checked: CheckAnswer = "", limit_s: float = LIMIT_S) -> Outcome:
    """The outcome of a case whose `difference` compiles, runs and compares: "" where all is right, else what differs.

    It may take `limit_s` of a processor's time: other work on the machine counts for nothing.
    """
    try:
        started = time.process_time()
        found = difference()
        if (spent := time.process_time() - started) > limit_s:
            return Outcome(case, "crashed", f"it took {spent:.0f} s of a processor, more than {limit_s:.0f}", checked)
    except (UnsupportedError, UserError) as error:
        return Outcome(case, "refused", one_line(str(error)), checked)
    except LlmosError as error:
        return Outcome(case, "crashed", one_line(f"{type(error).__name__}: {error}"), checked)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        notes = "; ".join(getattr(error, "__notes__", ()))
        return Outcome(case, "crashed", one_line(f"{type(error).__name__}: {error} ({place.name}:{place.lineno}) {notes}"), checked)
    return Outcome(case, "wrong" if found else "passed", one_line(found), checked)


def one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_REASON]
