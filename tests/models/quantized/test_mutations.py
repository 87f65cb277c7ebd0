"""Settings and tensors changed at random: a layer is unpacked, or refused in a line."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from llmos.models.quantized_checkpoints.checkpoint import QuantizedCheckpoint, scheme_of
from llmos.runtime.errors import UserError

from .cases import CASES
from .test_unpacking import weight_of

_NUMBERS = (0, 1, -1, 3, 4, 8, 16, 48, 64, 2**70, -(2**70), 4.0, float("nan"))
JUNK: tuple[Any, ...] = (*_NUMBERS, None, "", "4", "group", "re:[", [], ["Linear"], {}, {"a": 1}, True, False)
DTYPES = (torch.float32, torch.float16, torch.float64, torch.int32, torch.int64, torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn)


def changed_setting(config: dict[str, Any], choose: random.Random) -> None:
    """One setting, at any depth, gone or something else."""
    place = config
    while True:
        key = choose.choice(list(place))
        if not isinstance(place[key], dict) or not place[key] or choose.random() < 0.3:
            break
        place = place[key]
    if choose.random() < 0.2:
        del place[key]
    else:
        place[key] = choose.choice(JUNK)


def changed_tensor(tensor: torch.Tensor, choose: random.Random) -> torch.Tensor:
    match choose.randrange(7):
        case 0:
            return tensor.to(choose.choice(DTYPES))
        case 1:
            return tensor.reshape(-1)
        case 2:
            return tensor[: choose.randrange(tensor.shape[0])] if tensor.numel() and tensor.ndim else tensor
        case 3:
            return tensor[..., : choose.randrange(tensor.shape[-1])] if tensor.numel() and tensor.ndim else tensor
        case 4:
            return tensor.unsqueeze(choose.randrange(tensor.ndim + 1))
        case 5:
            return torch.zeros_like(tensor)
        case _:
            number = choose.choice((0, -1, 7, 2**30, -(2**31)))
            return torch.full(tensor.shape, number, dtype=torch.int64).to(tensor.dtype)


def copied(value: Any) -> Any:
    return {key: copied(each) for key, each in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", CASES)
def test_mutations(name: str) -> None:
    own, _ = CASES[name].pack(weight_of(32, 128), 0)
    num_refused = 0
    for seed in range(120):
        choose = random.Random(f"{name} {seed}")
        config, tensors = copied(CASES[name].config), {f"a.layer.{suffix}": value.clone() for suffix, value in own.items()}
        for _ in range(choose.randint(1, 2)):
            if choose.random() < 0.5:
                changed_setting(config, choose)
            else:
                key = choose.choice(list(tensors))
                tensors[key] = changed_tensor(tensors[key], choose)
        try:
            scheme = scheme_of({"quantization_config": config})
            assert scheme is not None or not config
            if scheme is not None:
                (weight,) = QuantizedCheckpoint.read(scheme, tensors).layers.values()
                assert weight.dequantized().shape == weight.values.shape
        except UserError as error:
            num_refused += 1
            assert "\n" not in str(error) and len(str(error)) < 300
    assert 20 < num_refused < 120
