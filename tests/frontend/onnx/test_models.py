"""Real models: eager and exported numbers against the ONNX model itself, at sizes other than the traced ones."""

from __future__ import annotations

import gzip
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmos.compiler.frontend.onnx import OnnxProgram, export_onnx, unsupported_ops
from llmos.compiler.frontend.onnx.symbols import example_inputs, symbols_of

MODELS = Path(os.environ.get("LLMOS_TEST_MODELS", Path(__file__).parents[4] / "shared" / "models"))

pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason=f"no models in {MODELS}; set LLMOS_TEST_MODELS")

# File, arguments of the import, largest error relative to the output's scale.
CASES = [
    ("mnist/microsoft-mnist.onnx", {}, 1e-5),
    ("mnist/tracel-ai-mnist.onnx", {}, 1e-5),
    ("magika/model.onnx", {}, 1e-5),
    ("sbd-lstm/model.onnx", {}, 1e-5),
    pytest.param("super-resolution/super_resolution.onnx", {}, 1e-5, marks=pytest.mark.slow),
    ("squeezenet-fp16/SqueezeNet_fp16.onnx", {}, 2e-3),
    ("yunet/yunet_n_dynamic.onnx", {"dynamic": {"height": 64, "width": 96}}, 1e-5),
    pytest.param("basic-pitch/nmp.onnx", {}, 1e-5, marks=pytest.mark.slow),
    ("silero-vad/silero_vad_op18_ifless.onnx", {"bind": {"sr": 16000}, "dynamic": {"sequence": 576}}, 1e-4),
    ("silero-vad/silero_vad_16k_op15.onnx", {"bind": {"sr": 16000}, "dynamic": {"sequence": 576}}, 1e-4),
]


def _load(path: str, **options: Any) -> OnnxProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return export_onnx(MODELS / path, **options)


def _error(program: OnnxProgram, run: Any, inputs: tuple[torch.Tensor, ...]) -> float:
    with torch.no_grad():
        got = run(*inputs)
    want = program.reference([value.numpy() for value in inputs])
    pairs = [(g.numpy().astype(np.float64), w.astype(np.float64)) for g, w in zip(got, want, strict=True)]
    return max(float(np.abs(g - w).max() / max(1.0, np.abs(w).max())) for g, w in pairs)


@pytest.mark.parametrize(("path", "options", "limit"), CASES)
def test_exported_at_other_sizes(path: str, options: dict[str, Any], limit: float) -> None:
    program = _load(path, **options)
    traced = {
        str(d): n
        for s, x in zip(program.inputs, program.examples, strict=True)
        for d, n in zip(s.shape, x.shape, strict=True)
        if isinstance(d, str)
    }
    assert set(traced) == set(symbols_of(program.inputs))
    assert _error(program, program.module, program.examples) <= limit
    compiled = program.program.module()
    for growth in (1, 4) if traced else (0,):
        inputs = example_inputs(program.inputs, {name: size + growth for name, size in traced.items()}, seed=growth)
        assert _error(program, compiled, inputs) <= limit


@pytest.mark.sample(0)
@pytest.mark.parametrize(
    ("path", "right"), [("mnist/microsoft-mnist.onnx", 987), ("mnist/tracel-ai-mnist.onnx", 990)], ids=["microsoft", "tracel-ai"]
)
def test_mnist_digits(path: str, right: int) -> None:
    pixels = np.frombuffer(gzip.decompress((MODELS / "mnist/t10k-images-idx3-ubyte.gz").read_bytes()), np.uint8, 1000 * 784, 16)
    labels = np.frombuffer(gzip.decompress((MODELS / "mnist/t10k-labels-idx1-ubyte.gz").read_bytes()), np.uint8, 1000, 8)
    digits = pixels.reshape(1000, 1, 1, 28, 28).astype(np.float32)
    if "tracel" in path:
        digits = (digits / 255 - 0.1307) / 0.3081
    program = _load(path).program.module()
    with torch.no_grad():
        found = [int(program(torch.from_numpy(digit))[0].argmax()) for digit in digits]
    assert int((np.array(found) == labels).sum()) == right


def test_magika_classifies_every_case() -> None:
    program = _load("magika/model.onnx", dynamic=["batch"])
    assert program.inputs[0].shape == ("batch", 2048)
    labels = json.loads((MODELS / "magika/config.min.json").read_text())["target_labels_space"]
    files = sorted(path for path in (MODELS / "magika/cases").rglob("*") if path.is_file())
    with torch.no_grad():
        (scores,) = program.program.module()(torch.tensor([_magika_tokens(path.read_bytes()) for path in files], dtype=torch.int32))
    assert [labels[i] for i in scores.argmax(1).tolist()] == [path.parent.name for path in files]


def _magika_tokens(data: bytes) -> list[int]:
    """The first and the last 1024 bytes without surrounding white space, padded with 256."""
    first, last = data[:4096].lstrip()[:1024], data[-4096:].rstrip()[-1024:]
    return [*first, *[256] * (1024 - len(first)), *[256] * (1024 - len(last)), *last]


def test_sbd_lstm_golden() -> None:
    program = _load("sbd-lstm/model.onnx")
    golden = np.load(MODELS / "sbd-lstm/io.npz")
    arrays = {array.dtype.kind: array for array in (golden[name] for name in golden.files)}
    with torch.no_grad():
        (got,) = program.program.module()(torch.from_numpy(arrays["u"]))
    assert np.abs(got.numpy() - arrays["f"]).max() < 1e-5


@pytest.mark.slow
def test_sizes_that_must_divide_stay_dynamic_and_the_smallest_is_said() -> None:
    with pytest.warns(UserWarning, match=r"'height' of 15 or more, 'width' of 15 or more \(because of node MaxPool"):
        program = export_onnx(MODELS / "yunet/yunet_n_dynamic.onnx")
    assert program.inputs[0].shape == ("batch", 3, "height", "width")


def test_every_model_is_supported() -> None:
    assert [problem for path in MODELS.rglob("*.onnx") for problem in unsupported_ops(path)] == []
