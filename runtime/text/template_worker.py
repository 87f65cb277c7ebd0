"""A process that renders chat templates, one at a time, within limits of processor time and memory.

Jinja's sandbox keeps a template from the interpreter's objects, but not from loops within loops, powers or strings that grow: what these
exceed here ends this process, or is an error of the request.
"""

from __future__ import annotations

import datetime
import functools
import json
import resource
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from llmos.runtime.children import serve
from llmos.runtime.errors import InputError, UserError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 512 << 20  # of addresses: an interpreter with Jinja has 100 MiB
MAX_CHARACTERS = 1 << 24
_MAX_REASON = 300


def render(request: bytes) -> bytes:
    """Return the text of a request {"template": source, "variables": {...}} in JSON. Raises InputError with what is wrong."""
    wanted = json.loads(request)
    try:
        text = _template(wanted["template"]).render(wanted["variables"])
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"the chat template gives {len(text)} characters, and {MAX_CHARACTERS} are the limit")
        return text.encode()
    except UserError:
        raise
    except MemoryError:
        raise InputError(f"the chat template needs more than {MEMORY_BYTES >> 20} MiB of memory") from None
    except RecursionError:
        raise InputError("the chat template recurses without end") from None
    except Exception as error:  # a template can raise anything
        raise InputError(_reason(error)) from error


def _reason(error: Exception) -> str:
    from jinja2 import TemplateSyntaxError

    if isinstance(error, TemplateSyntaxError):
        return f"the chat template can't be read: {_short(error.message or '')} (line {error.lineno})"
    return f"the chat template failed: {_short(str(error) or type(error).__name__)}"


def _short(text: str) -> str:
    return text if len(text) <= _MAX_REASON else f"{text[:_MAX_REASON]}..."


@functools.lru_cache(16)
def _template(source: str) -> Template:
    return _environment().from_string(source)


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    """What templates are written for: the environment that transformers gives them."""
    try:
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise UserError("chat needs the jinja2 package: pip install llmos[serve]") from None
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _generation_tag()])
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = _strftime_now
    return made


def _generation_tag() -> Any:
    """Return the extension for `{% generation %}`, which marks what a model has said for training, and is nothing here."""
    from jinja2.ext import Extension
    from jinja2.nodes import Node
    from jinja2.parser import Parser

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012, as Jinja declares it

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: tuple[str, str] | None = None, sort_keys: bool = False
) -> str:
    """JSON as it is, where Jinja's own filter escapes characters of HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise InputError(f"the chat template refuses these messages: {_short(str(message))}")


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _limited(answer: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    return answer


if __name__ == "__main__":
    serve(_limited(render))
