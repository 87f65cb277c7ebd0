"""Models that others trained, compiled from ONNX and torch, on their own data."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import llmos
from tests.frontend.resnet20 import ResNet20

from .conftest import Compile

NATIVE = ("--target", "native")
Array = np.ndarray[Any, Any]


def mnist(models: Path) -> tuple[Array, Array]:
    """The first 1000 test digits [1000, 1, 1, 28, 28], 0 to 255, and their labels."""
    pixels = np.frombuffer(gzip.decompress((models / "mnist/t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, 1000 * 784, 16)
    labels = np.frombuffer(gzip.decompress((models / "mnist/t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, 1000, 8)
    return pixels.reshape(1000, 1, 1, 28, 28).astype(np.float32), labels


@pytest.mark.parametrize(("name", "right"), [("microsoft-mnist", 987), ("tracel-ai-mnist", 990)])
def test_mnist_digits(name: str, right: int, models: Path, compiled: Compile) -> None:
    digits, labels = mnist(models)
    if name.startswith("tracel"):
        digits = (digits / 255 - 0.1307) / 0.3081
    with llmos.load(compiled(models / "mnist" / f"{name}.onnx", name, *NATIVE)) as program:
        found = [int(np.argmax(program(digit))) for digit in digits.astype(np.float32)]
    assert int((np.array(found) == labels).sum()) == right


def test_magika_tells_the_type_of_every_file(models: Path, compiled: Compile) -> None:
    labels = json.loads((models / "magika/config.min.json").read_text())["target_labels_space"]
    files = sorted(path for path in (models / "magika/cases").rglob("*") if path.is_file())
    assert len(files) == 43
    with llmos.load(compiled(models / "magika/model.onnx", "magika", *NATIVE)) as program:
        found = [labels[int(np.argmax(program(magika_tokens(path.read_bytes()))))] for path in files]
    assert found == [path.parent.name for path in files]


def magika_tokens(data: bytes) -> Array:
    """The first and the last 1024 bytes without surrounding white space, padded with 256; int32 [1, 2048]."""
    first, last = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
    return np.array([[*first, *[256] * (1024 - len(first)), *[256] * (1024 - len(last)), *last]], np.int32)


def test_sbd_lstm_gives_its_golden_output(models: Path, compiled: Compile) -> None:
    golden = np.load(models / "sbd-lstm/io.npz")
    arrays = {array.dtype.kind: array for array in (golden[name] for name in golden.files)}
    with llmos.load(compiled(models / "sbd-lstm/model.onnx", "sbd", *NATIVE)) as program:
        found = program(arrays["u"])
    assert np.abs(found - arrays["f"]).max() < 1e-5


def test_resnet20_exported_from_torch_is_like_eager(models: Path, compiled: Compile, tmp_path: Path) -> None:
    state = torch.load(models / "resnet20-cifar10/resnet20-12fca82f.th", map_location="cpu", weights_only=True)["state_dict"]
    module = ResNet20().eval()
    module.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
    torch.export.save(torch.export.export(module, (torch.randn(2, 3, 32, 32),), dynamic_shapes=shapes), tmp_path / "resnet20.pt2")
    with llmos.load(compiled(tmp_path / "resnet20.pt2", "resnet20", *NATIVE)) as program:
        for batch in (1, 5, 16):
            x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(batch))
            with torch.no_grad():
                expected = module(x).numpy()
            assert np.abs(program(x) - expected).max() < 1e-4 * np.abs(expected).max()
