"""The server to be measured: which models it has, and what they take."""

from __future__ import annotations

from typing import Any

import orjson

from llmos.runtime.bench.client import HttpClient, RequestError
from llmos.runtime.errors import UserError

_TIMEOUT_S = 10.0


async def first_model(client: HttpClient, api: str) -> str:
    """Return the first model of a server that fits an API: one with a context length for text. Raises UserError."""
    cards = (await get_json(client, "/v1/models")).get("data") or []
    generates = api in ("chat", "completions")
    names = [str(card["id"]) for card in cards if not generates or "max_model_len" in card or len(cards) == 1]
    if not generates:
        names = [str(card["id"]) for card in cards if "max_model_len" not in card]
    if not names:
        raise UserError(f"the server has no model for {api}: name one with --model")
    return names[0]


async def model_inputs(client: HttpClient, model: str) -> list[dict[str, Any]]:
    """Return the inputs of a model's metadata. Raises UserError."""
    found = await get_json(client, f"/v2/models/{model}")
    inputs = found.get("inputs")
    if not inputs:
        raise UserError(f"'{model}' takes no tensors: choose another model, or --api chat")
    return list(inputs)


async def get_json(client: HttpClient, path: str) -> dict[str, Any]:
    """Return a JSON object of the server. Raises UserError where there is none."""
    address = client.address
    try:
        response = await client.request("GET", path, timeout_s=_TIMEOUT_S)
    except RequestError as error:
        raise UserError(f"no server answers at {address.host}:{address.port} ({error})") from error
    try:
        found = orjson.loads(response.body)
    except ValueError:
        found = None
    if response.status != 200 or not isinstance(found, dict):
        said = response.body[:200].decode(errors="replace")
        raise UserError(f"{path} of {address.host}:{address.port} gives status {response.status}: {said}")
    return found
