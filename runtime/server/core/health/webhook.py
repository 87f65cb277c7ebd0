"""Events sent to a URL, from a thread of their own; one that doesn't answer holds nothing up."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any

import orjson

_LOG = logging.getLogger("llmos.server")
_TIMEOUT_S = 5.0
_PAUSES_S = (0.0, 1.0, 4.0)  # before each try
_MAX_WAITING = 100


class Webhook:
    """Posts events as JSON. on_failure: called for each that was not taken."""

    def __init__(self, url: str, on_failure: Callable[[], object]) -> None:
        self._url = url
        self._on_failure = on_failure
        self._events: queue.Queue[bytes] = queue.Queue(_MAX_WAITING)
        threading.Thread(target=self._work, name="llmos-webhook", daemon=True).start()

    def send(self, event: Mapping[str, Any]) -> None:
        """Send an event soon; where too many wait it is dropped, and counts as a failure."""
        try:
            self._events.put_nowait(orjson.dumps(event))
        except queue.Full:
            self._on_failure()

    def _work(self) -> None:
        while True:
            data = self._events.get()
            if not any(self._post(data, pause_s) for pause_s in _PAUSES_S):
                _LOG.error("the webhook of the health rules took no event, in %d tries", len(_PAUSES_S))
                self._on_failure()

    def _post(self, data: bytes, pause_s: float) -> bool:
        import urllib.request  # takes a while, and servers without rules don't need it

        time.sleep(pause_s)
        request = urllib.request.Request(self._url, data, {"Content-Type": "application/json"}, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
                return bool(200 <= answer.status < 300)
        except (OSError, ValueError, HTTPException):  # a URLError is an OSError; what is no HTTP is an HTTPException
            return False
