"""Children answer, end when they are idle, and what ends them at a request is seen by their parent."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmos.runtime import children as child
from llmos.runtime.children import Children

PID = b"import os; answer = str(os.getpid()).encode()"


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children("tests.runtime.served")
    yield made
    made.close()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("statement", "fault", "said"),
    [
        ("while True: pass", "more than 1 s of processor time", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV", ""),
        ("import os; os._exit(7)", "exit code 7", ""),
        ("import os; os._exit(0)", "exit code 0", ""),
        ("import os; os.write(2, b'working\\nLLVM ERROR: no such thing\\n'); os.abort()", "SIGABRT", "LLVM ERROR: no such thing"),
        ("1 / 0", "exit code 1", "ZeroDivisionError: division by zero"),
    ],
)
def test_how_a_child_ended(children: Children, statement: str, fault: str, said: str) -> None:
    found = children.ask(statement.encode(), limit_s=1)
    assert (found.fault, found.said, found.output, found.failed) == (fault, said, b"", False)
    assert children.ask(b"answer = b'on'").output == b"on"


def test_one_child_answers_one_request_after_the_other(children: Children) -> None:
    assert len({children.ask(PID).output for _ in range(3)}) == 1
    long = b"#" * (1 << 22) + b"\nanswer = bytes(1 << 23)"  # more than pipes hold, both ways
    assert children.ask(long).output == bytes(1 << 23)
    assert children.ask(b"print('noise'); answer = b'sound'").output == b"sound"
    failed = children.ask(b"raise PassError('no\\n  such thing')")
    assert failed.failed and failed.said == "no such thing" and not failed.fault and not failed.output


def test_what_an_earlier_request_said_is_not_why_a_later_one_ended(children: Children) -> None:
    assert children.ask(b"import os; os.write(2, b'a warning\\n'); answer = b'on'").output == b"on"
    found = children.ask(b"import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert (found.fault, found.said) == ("SIGSEGV", "")


def test_processor_time_is_counted_by_request(children: Children) -> None:
    work = b"import time; end = time.process_time() + 0.8\nwhile time.process_time() < end: pass"
    answers = [children.ask(work + b"\n" + PID, limit_s=1) for _ in range(3)]
    assert not any(answer.fault for answer in answers) and len({answer.output for answer in answers}) == 1


def test_a_child_is_replaced_after_so_many_requests(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "MAX_REQUESTS", 2)
    pids = [int(children.ask(PID).output) for _ in range(4)]
    assert pids[0] == pids[1] != pids[2] == pids[3] and not _runs(pids[0])


def test_threads_have_a_child_each(children: Children) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(children.ask, [b"import time; time.sleep(0.3)\n" + PID] * 2))
    assert len({each.output for each in found}) == 2


def test_an_idle_child_ends_and_another_takes_over(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVED_IDLE_S", "0.1")
    first = children.ask(PID).output
    time.sleep(0.5)
    assert children.ask(PID).output not in (b"", first)


def _ask(children: Children) -> None:
    os._exit(0 if children.ask(b"answer = b'forked'").output == b"forked" else 1)


def test_a_child_that_is_killed_while_it_is_idle_fails_no_request(children: Children) -> None:
    first = int(children.ask(PID).output)
    os.kill(first, signal.SIGKILL)
    while Path(f"/proc/{first}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    answer = children.ask(PID)
    assert not answer.fault
    assert int(answer.output) != first


def test_a_forked_process_starts_children_of_its_own(children: Children) -> None:
    before = children.ask(PID).output
    forked = multiprocessing.get_context("fork").Process(target=_ask, args=(children,))
    forked.start()
    forked.join()
    assert forked.exitcode == 0 and children.ask(PID).output == before


def test_a_request_that_is_interrupted_leaves_no_child(children: Children) -> None:
    pid = int(children.ask(PID).output)
    handler = signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(TimeoutError):
            children.ask(b"import time; time.sleep(60)")
    finally:
        signal.signal(signal.SIGALRM, handler)
    assert not _runs(pid) and children.ask(b"answer = b'on'").output == b"on"
