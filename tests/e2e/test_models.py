"""Models that others trained, compiled from ONNX and torch, on their own data."""

from __future__ import annotations

import gzip
import json
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
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


@pytest.mark.sample(0)
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


def samples(path: Path, rate: int) -> Array:
    """The mono 16-bit wav at `rate` samples a second, -1 to 1; each is the mean of neighbors where the file has more."""
    with wave.open(str(path)) as file:
        step = file.getframerate() // rate
        data = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    return data[: len(data) // step * step].reshape(-1, step).mean(1)


@pytest.mark.sample(0)
@pytest.mark.parametrize("name", ["silero_vad_op18_ifless", "silero_vad_16k_op15"])
def test_silero_hears_the_speech_of_twenty_seconds(name: str, models: Path, compiled: Compile) -> None:
    """Streamed: each call takes 64 samples of the frame before, 512 new ones and the state of the last call."""
    sound = samples(models / "silero-vad/test.wav", 16000)[: 20 * 16000].reshape(-1, 512)
    artifact = compiled(models / "silero-vad" / f"{name}.onnx", name, *NATIVE, "--bind", "sr=16000", "--dynamic", "batch=1,sequence=576")
    state, before, speech = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32), 0
    with llmos.load(artifact) as program:
        for frame in sound:
            probability, state = program(input=np.concatenate([before, frame])[None], state=state)
            before = frame[-64:]
            speech += int(probability[0, 0] >= 0.5)
    assert speech == 440


@dataclass(frozen=True)
class Peer:
    """A model to hold against onnxruntime: shapes of its input, and the largest error relative to the output."""

    path: str
    shapes: tuple[tuple[int, ...], ...]
    high: float = 1.0
    dtype: str = "float32"
    limit: float = 1e-4


PEERS = [
    pytest.param(Peer("squeezenet-fp16/SqueezeNet_fp16.onnx", ((1, 3, 224, 224),), 120, "float16", limit=2e-2), marks=pytest.mark.slow),
    # A value that lies between two of the 256 levels may fall to either, and the next layers carry it on.
    pytest.param(Peer("shufflenet-int8/shufflenet-v2-12-int8.onnx", ((1, 3, 224, 224),), 2, limit=5e-2), marks=pytest.mark.slow),
    pytest.param(Peer("yolox-nano/yolox_nano.onnx", ((1, 3, 416, 416),), 255), marks=pytest.mark.slow),
    pytest.param(
        Peer("yunet/yunet_n_dynamic.onnx", ((2, 3, 96, 128), (1, 3, 320, 320), (3, 3, 224, 96), (1, 3, 32, 64)), 255),
        marks=pytest.mark.slow,
    ),
    Peer("super-resolution/super_resolution.onnx", ((1, 1, 224, 224),)),
]


def image(peer: Peer, shape: tuple[int, ...]) -> Array:
    """Smooth, as photos are: a coarse random grid, enlarged."""
    *outer, height, width = shape
    coarse = np.random.default_rng(7).uniform(0, peer.high, (*outer, height // 8, width // 8))
    return np.kron(coarse, np.ones((8, 8))).astype(peer.dtype)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.path.split("/")[0])
def test_model_is_like_onnxruntime(peer: Peer, models: Path, compiled: Compile) -> None:
    with llmos.load(compiled(models / peer.path, "peer", *NATIVE, "--no-accuracy-report")) as program:
        for shape in peer.shapes:
            x = image(peer, shape)
            found = program(x)
            agree(models / peer.path, x, found if isinstance(found, tuple) else (found,), peer.limit)


@pytest.mark.slow
def test_basic_pitch_transcribes_like_onnxruntime(models: Path, compiled: Compile) -> None:
    """Two windows of two seconds of singing at 22,050 samples a second."""
    path = models / "basic-pitch/nmp.onnx"
    windows = samples(models / "basic-pitch/vocadito_10.wav", 22050)[: 2 * 43844].reshape(2, 43844, 1)
    with llmos.load(compiled(path, "pitch", *NATIVE, "--no-accuracy-report")) as program:
        found = program(windows)
    agree(path, windows, found, 1e-3)


def agree(path: Path, x: Array, found: Sequence[Array], limit: float) -> None:
    """Each output is onnxruntime's but for `limit` of its scale."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # bytes multiplied exactly, without VNNI as well
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: x})
    assert len(found) == len(expected)
    for got, want in zip(found, expected, strict=True):
        assert got.shape == want.shape
        assert np.abs(got.astype(np.float64) - want).max() <= limit * np.abs(want).max()


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
