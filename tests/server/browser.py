"""A headless Chromium, told what to do through its own protocol over two pipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page:
    """One page. said: what it has written to its console, warnings and errors of scripts and of its policy, and its requests."""

    def __init__(self, requests: int, answers: int) -> None:
        self._requests, self._answers = requests, answers
        self._buffer = b""
        self._next_id = 0
        self._session: str | None = None
        self.said: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """Evaluate JavaScript, and wait for a promise."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, condition: str, timeout_s: float = 60.0) -> None:
        end_s = time.monotonic() + timeout_s
        while not self.value(condition):
            assert time.monotonic() < end_s, f"{condition}: {self.said}, {self.value('document.body.innerText')}"
            time.sleep(0.02)

    def fill(self, id: str, text: str) -> None:
        """Give a field a value, as a user does."""
        self.value(
            f"(() => {{ const field = document.getElementById({id!r}); field.focus(); field.value = {json.dumps(text)};"
            "field.dispatchEvent(new Event('input', {bubbles: true})); field.dispatchEvent(new Event('change', {bubbles: true})); })()"
        )

    def click(self, id: str) -> None:
        self.value(f"document.getElementById({id!r}).click()")

    def text(self, selector: str) -> list[str]:
        """Return the texts of the elements that are found."""
        found: list[str] = self.value(f"[...document.querySelectorAll({selector!r})].map((each) => each.textContent)")
        return found

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._next_id += 1
        message: dict[str, Any] = {"id": self._next_id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._next_id:
                assert "error" not in found, found
                result: dict[str, Any] = found["result"]
                return result
            self._note(found)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("warning", "error"):
            self.said.append(params["entry"]["text"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(params["exceptionDetails"]))
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.said.append(str(params["args"]))
        elif event.get("method") == "Network.requestWillBeSent":
            self.said.append("request " + params["request"]["url"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._answers, 1 << 16)
            assert piece, "the browser has ended"
            self._buffer += piece
        message, self._buffer = self._buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a browser of its own, until the block ends."""
    assert CHROMIUM is not None
    their_requests, requests = os.pipe()
    answers, their_answers = os.pipe()
    with tempfile.TemporaryDirectory(prefix="llmos-browser-", ignore_cleanup_errors=True) as folder:
        # The protocol is spoken on descriptors 3 and 4, which a shell can put the pipes on.
        options = (
            f"--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --remote-debugging-pipe --user-data-dir={folder}"
        )
        command = f"exec {CHROMIUM} {options} about:blank 3<&{their_requests} 4>&{their_answers}"
        process = subprocess.Popen(
            ["/bin/bash", "-c", command],
            pass_fds=(their_requests, their_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(their_requests)
        os.close(their_answers)
        try:
            yield Page(requests, answers)
        finally:
            os.close(requests)
            os.close(answers)
            try:
                process.wait(10)  # it ends when nobody speaks with it any more
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
