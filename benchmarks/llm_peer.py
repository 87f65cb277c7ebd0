"""What a peer of benchmarks/llm.py answers in its process: points on standard input and seconds on standard output, a line of JSON each.

A point is `{"prompt": tokens of each request, "generated": tokens that each gets, "batch": requests that start together}`. The answer is
`{"first_s": seconds from the start to the first token of the last request, "last_s": to the last token}`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable


def answer_points(run: Callable[..., dict[str, float]]) -> None:
    """Call run(prompt=, generated=, batch=) for each point until the input ends. What the engine itself prints goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        print(json.dumps(run(**json.loads(line))), file=answers, flush=True)
