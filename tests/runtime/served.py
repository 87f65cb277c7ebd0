"""A child of the tests: runs the Python statements that it is sent, and answers what they leave in `answer`."""

from __future__ import annotations

import os
from typing import Any

from llmos.runtime import children as child
from llmos.runtime.errors import PassError

child.IDLE_S = float(os.environ.get("SERVED_IDLE_S", child.IDLE_S))


def answer(request: bytes) -> bytes:
    names: dict[str, Any] = {"PassError": PassError, "answer": b""}
    exec(request.decode(), names)
    return bytes(names["answer"])


if __name__ == "__main__":
    child.serve(answer)
