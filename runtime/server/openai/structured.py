"""The form that a request asks of its texts: OpenAI's `response_format`, and vLLM's names for forms beside JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmos.runtime.engine.generate.structured import StructuredOutputs
from llmos.runtime.errors import InputError
from llmos.runtime.server.core.errors import HttpError

# vLLM's older names, and the keys of StructuredOutputs.of that they stand for.
_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
FIELDS = ("response_format", "structured_outputs", *_GUIDED)
_FORMATS = "'response_format' must be an object whose 'type' is 'text', 'json_object' or 'json_schema'"
_MAX_NAME = 64


def structured_outputs(fields: Mapping[str, Any]) -> StructuredOutputs | None:
    """Return the form that a request asks for, None for any text. Raises HttpError 400 that names the field."""
    given = form_fields(fields)
    if not given:
        return None
    if len(given) > 1:
        raise HttpError(400, f"'{given[0]}' and '{given[1]}' are both given: leave one of them out", param=given[1])
    name = given[0]
    value = fields[name]
    if name == "response_format":
        value = _of_format(value)
    elif name in _GUIDED:
        value = {_GUIDED[name]: value}
    try:
        return StructuredOutputs.of(value)
    except InputError as error:
        raise as_field_error(error, name) from error


def form_fields(fields: Mapping[str, Any]) -> list[str]:
    """Return the fields of a request that ask for a form; `response_format` of the type text asks for none."""
    given = [name for name in FIELDS if fields.get(name) is not None]
    return [name for name in given if name != "response_format" or not _is_text(fields[name])]


def as_field_error(error: InputError, field: str) -> HttpError:
    """Return a 400 for a form that can't be used. field: of the request, which it is from."""
    reason = str(error).partition(": ")[2]
    return HttpError(400, f"{field}: {reason}", param=field)


def _is_text(value: object) -> bool:
    return isinstance(value, dict) and value.get("type") == "text"


def _of_format(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_object":
        return {"json_object": True}
    if kind != "json_schema" or not isinstance(value, dict):
        raise HttpError(400, _FORMATS, param="response_format")
    wanted = value.get("json_schema")
    if not isinstance(wanted, dict) or not isinstance(wanted.get("schema"), dict):
        raise HttpError(
            400, "'response_format' needs 'json_schema' with a 'schema', which is an object", param="response_format.json_schema"
        )
    name, strict = wanted.get("name"), wanted.get("strict")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME:
        raise HttpError(400, f"'json_schema' needs a 'name' of 1 to {_MAX_NAME} characters", param="response_format.json_schema.name")
    return schema_form(wanted["schema"], strict, "response_format.json_schema.strict")


def schema_form(schema: Mapping[str, Any], strict: object, param: str) -> StructuredOutputs:
    """Return the form of a schema. strict: true, or false or None to ignore keywords that can't be enforced. Raises what `of` raises."""
    if strict is not None and not isinstance(strict, bool):
        raise HttpError(400, "'strict' must be true or false", param=param)
    made = StructuredOutputs.of({"json": schema})
    return StructuredOutputs(made.kind, made.source, strict=bool(strict))
