"""A process that compiles grammars and follows them for some steps, one at a time, with limits of time, memory and stack.

It tells which grammars are harmless: what ends this process, or takes too long, never reaches a server's. Tokens are single bytes here, as
what a grammar takes depends on the grammar far more than on the tokens.
"""

from __future__ import annotations

import ctypes
import json
import random
import resource
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from llmos.runtime.children import serve
from llmos.runtime.errors import InputError
from llmos.runtime.text.grammar_limits import one_line, parser_limits

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MEMORY_BYTES = 768 << 20  # of addresses: an interpreter with llguidance has some 100 MiB
STACK_BYTES = 1 << 20  # an eighth of that of the threads which compile what is harmless here
MAX_GRAMMAR_BYTES = 128 << 20
MAX_STEP_S = 0.1  # of processor time
_NUM_STEPS = 48
_END = 256  # the id of the end token, behind the bytes
_FIRST = 'start: "a"'  # compiled before those of clients: what the library allocates once is of none of them


def check(request: bytes) -> bytes:
    """Return how many bytes a grammar takes. request: {"grammar": text, "special": tokens that it may name} in JSON. Raises InputError."""
    wanted = json.loads(request)
    found: list[int | InputError] = []
    thread = threading.Thread(target=_check_in_thread, args=(wanted["grammar"], wanted["special"], found))
    thread.start()
    thread.join()
    result = found[0] if found else InputError("it takes too much memory")
    if isinstance(result, InputError):
        raise result
    return b"%d" % result


def _check_in_thread(grammar: str, special: Sequence[str], found: list[int | InputError]) -> None:
    try:
        found.append(_num_bytes(grammar, special))
    except InputError as error:
        found.append(error)
    except MemoryError:
        found.append(InputError("it takes too much memory"))
    except Exception as error:  # of the library
        found.append(InputError(f"it can't be compiled ({error!r:.200})"))


def _num_bytes(grammar: str, special: Sequence[str]) -> int:
    from llguidance import LLMatcher

    tokenizer = _tokenizer(special)
    before = _allocated_bytes()
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
    if error := matcher.get_error():
        raise InputError(one_line(error))
    chosen = random.Random(0)
    walk = matcher.deep_copy()
    for number in range(_NUM_STEPS):
        begin_s = time.thread_time()
        mask = walk.compute_bitmask()
        if error := walk.get_error():
            raise InputError("no text can have this form" if not number and "NoExtension" in error else one_line(error))
        if walk.is_stopped():
            break
        allowed = [id for id in range(8 * len(mask)) if mask[id // 8] >> id % 8 & 1 and id != _END]
        if not allowed:
            break
        walk.consume_token(chosen.choice(allowed))
        if time.thread_time() - begin_s > MAX_STEP_S:
            raise InputError(f"a token of it takes more than {MAX_STEP_S * 1e3:.0f} ms")
    taken = max(0, _allocated_bytes() - before)
    if taken > MAX_GRAMMAR_BYTES:
        raise InputError(f"it takes {taken >> 20} MiB of memory, and {MAX_GRAMMAR_BYTES >> 20} are the limit")
    return taken


def _tokenizer(special: Sequence[str]) -> LLTokenizer:
    from llguidance import LLTokenizer, TokenizerWrapper

    class Bytes:
        eos_token_id = _END
        bos_token_id = None
        tokens = [*(bytes([byte]) for byte in range(256)), b"<|end|>", *(each.encode() for each in special)]  # noqa: RUF012
        special_token_ids = list(range(256, 257 + len(special)))  # noqa: RUF012

        def __call__(self, text: bytes | str) -> list[int]:
            return list(text.encode() if isinstance(text, str) else text)

    return LLTokenizer(TokenizerWrapper(Bytes()))


class _MallocInfo(ctypes.Structure):
    """What glibc says of its heap (mallinfo(3)). Its sizes are of 32 bits, which MEMORY_BYTES fits into."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_int) for name in _names]


def _allocated_bytes() -> int:
    """Return the bytes that native code has allocated and not freed.

    What a grammar adds to them depends on it alone; what it adds to the size of the process depends on what earlier ones have freed.
    """
    found = _mallinfo()
    return int(found.uordblks + found.hblkhd)


def _mallinfo() -> _MallocInfo:
    read = ctypes.CDLL(None).mallinfo
    read.restype = _MallocInfo
    found: _MallocInfo = read()
    return found


def _limited(answer: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    threading.stack_size(STACK_BYTES)
    sys.setrecursionlimit(1000)
    _num_bytes(_FIRST, ())
    return answer


if __name__ == "__main__":
    serve(_limited(check))
