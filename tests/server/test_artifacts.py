"""`llmos serve` on real artifacts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import tritonclient.http as triton

from ..cli_runtime.artifacts import affine_artifact, counts_artifact  # noqa: TID252
from .harness import Server, running

COMMAND = [sys.executable, "-c", "from llmos.runtime.cli import main; main()", "serve", "--port", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    affine_artifact(folder / "affine.llmos")
    counts_artifact(folder / "counts.llmos")
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[Server]:
    with running([*COMMAND, str(folder / "affine.llmos"), f"words={folder / 'counts.llmos'}"]) as server:
        yield server


def test_two_artifacts_in_one_server(served: Server) -> None:
    assert [model["id"] for model in served.get("/v1/models").json()["data"]] == ["affine", "words"]
    assert served.affine([1, 2, 3]).json()["outputs"][0]["data"] == [3.0, 5.0, 7.0]
    answer = served.request("POST", "/v1/embeddings", {"model": "words", "input": "the cat"})
    assert answer.status == 200
    assert len(answer.json()["data"][0]["embedding"]) == 40


def test_32_clients_get_what_the_program_gives_in_process(folder: Path) -> None:
    # In a process of its own, so that the server and the reference don't share one.
    texts = [" ".join(["the", "cat", "sat", "on", "mat"][: 1 + number % 5] * (1 + number % 3)) for number in range(32)]
    script = (
        "import sys, json, numpy; from pathlib import Path; from llmos.runtime.engine import load_model;"
        "from llmos.runtime.text.tokenizer import TextEncoder; m = load_model(Path(sys.argv[1])); e = TextEncoder(m);"
        "print(json.dumps([m(list(e.inputs(e.encode([t])[0]).values()))[0][0].tolist() for t in json.loads(sys.argv[2])]))"
    )
    import json

    counts = folder / "counts.llmos"
    done = subprocess.run([sys.executable, "-c", script, str(counts), json.dumps(texts)], capture_output=True, text=True, check=True)
    expected = np.array(json.loads(done.stdout), np.float32)
    with running([*COMMAND, str(counts)]) as server, ThreadPoolExecutor(32) as pool:

        def through_openai(number: int) -> Any:
            with openai.OpenAI(base_url=f"http://{server.address}/v1", api_key="none", max_retries=0) as client:
                return client.embeddings.create(model="counts", input=texts[number]).data[0].embedding

        def through_triton(number: int) -> Any:
            inputs = []
            for name in ("input_ids", "attention_mask"):
                array = np.full((1, 3 + number % 4), 1 + number % 9 if name == "input_ids" else 1)
                inputs.append(triton.InferInput(name, list(array.shape), "INT64").set_data_from_numpy(array))
            with triton.InferenceServerClient(server.address) as client:
                return client.infer("counts", inputs).as_numpy("embeddings")

        np.testing.assert_array_equal(np.array(list(pool.map(through_openai, range(32))), np.float32), expected)
        for number, row in enumerate(pool.map(through_triton, range(32))):
            np.testing.assert_array_equal(row, np.eye(40, dtype=np.float32)[[1 + number % 9]])
        assert server.stop() == 0


def test_tokens_outside_the_model_fail_only_their_request(folder: Path) -> None:
    with running([*COMMAND, str(folder / "counts.llmos")]) as server:
        items = [
            {"name": name, "datatype": "INT64", "shape": [1, 1], "data": [value]}
            for name, value in (("input_ids", 99), ("attention_mask", 1))
        ]
        answer = server.request("POST", "/v2/models/counts/infer", {"inputs": items})
        assert answer.status in (400, 500)
        assert answer.json()["error"]
        assert server.request("POST", "/v1/embeddings", {"model": "counts", "input": "cat"}).status == 200


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["AFFINE", "AFFINE"], "two models are named 'affine'"),
        (["a/b=AFFINE"], "can't be a model's name"),
        (["missing.llmos"], "missing.llmos: can't open it"),
        (["=AFFINE"], "neither a path nor name=path"),
        ([], "Missing argument"),
        (["AFFINE", "--max-queue", "0"], "--max-queue"),
        (["AFFINE", "--timeout-s", "nan"], "is not a finite number"),
        (["AFFINE", "--keep-alive-s", "inf"], "is not a finite number"),
        (["AFFINE", "--host", "no.such.host.invalid"], "can't listen on no.such.host.invalid"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(folder: Path, args: list[str], message: str) -> None:
    command = [*COMMAND, *(arg.replace("AFFINE", str(folder / "affine.llmos")) for arg in args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2, done
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_port_in_use(folder: Path, served: Server) -> None:
    command = [*COMMAND, str(folder / "affine.llmos"), "--port", str(served.port)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, "choose another --host or --port" in done.stderr) == (2, True)


def test_keys_from_the_environment(folder: Path) -> None:
    with running([*COMMAND, str(folder / "affine.llmos")], env={**os.environ, "LLMOS_API_KEYS": "one, two"}) as server:
        assert server.affine([1, 2, 3]).status == 401
        assert server.affine([1, 2, 3], {"Authorization": "Bearer two"}).status == 200


def test_what_happens_to_the_file_does_not_happen_to_the_server(folder: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.llmos" for name in ("cut", "overwritten", "removed")]
    for path in paths:
        path.write_bytes((folder / "counts.llmos").read_bytes())
    with running([*COMMAND, *(f"{path.stem}={path}" for path in paths)]) as server:
        before = [server.request("POST", "/v1/embeddings", {"model": path.stem, "input": "the cat sat"}).json()["data"] for path in paths]
        os.truncate(paths[0], 0)
        with paths[1].open("r+b") as file:
            file.write(bytes(paths[1].stat().st_size))
        paths[2].unlink()
        after = [server.request("POST", "/v1/embeddings", {"model": path.stem, "input": "the cat sat"}).json()["data"] for path in paths]
    assert before == after
    assert before[0] == before[1] == before[2]


def test_a_damaged_artifact_is_called_by_its_name(folder: Path, tmp_path: Path) -> None:
    data = bytearray((folder / "counts.llmos").read_bytes())
    data[len(data) // 2] ^= 1
    damaged = tmp_path / "damaged.llmos"
    damaged.write_bytes(data)
    os.mkfifo(tmp_path / "pipe.llmos")
    (tmp_path / "empty.llmos").touch()
    for path in (damaged, tmp_path / "pipe.llmos", tmp_path / "empty.llmos", tmp_path):
        done = subprocess.run([*COMMAND, str(path)], capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
        assert str(path) in done.stderr
        assert "/proc" not in done.stderr


@pytest.mark.parametrize("value", ["", ",", " , "])
def test_an_empty_list_of_keys_is_no_open_server(folder: Path, value: str) -> None:
    command = [*COMMAND, str(folder / "affine.llmos")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env={**os.environ, "LLMOS_API_KEYS": value})
    assert (done.returncode, done.stderr) == (2, "error: LLMOS_API_KEYS is set and holds no key: unset it to serve everyone\n")


@pytest.mark.slow
def test_keys_from_a_file(folder: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# of the team\nfirst\n\n  second weight=2 requests_per_min=600 tokens_per_min=1e5\n")
    with running([*COMMAND, str(folder / "affine.llmos"), "--api-keys-file", str(keys)]) as server:
        assert server.affine([1, 2, 3]).status == 401
        assert server.affine([1, 2, 3], {"Authorization": "Bearer second"}).status == 200
        assert server.affine([1, 2, 3], {"Authorization": "Bearer # of the team"}).status == 401
    for text in ("\n# none\n", "key weight=0", "key limit=3", "key weight", "key weight=much"):
        keys.write_text(text)
        command = [*COMMAND, str(folder / "affine.llmos"), "--api-keys-file", str(keys)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done


def test_a_server_for_everyone_says_so(folder: Path) -> None:
    for host, warns in (("0.0.0.0", True), ("127.0.0.1", False)):
        process = subprocess.Popen(
            [*COMMAND, str(folder / "affine.llmos"), "--host", host], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "serving" in line:
                break
        process.kill()
        process.wait()
        assert any("anyone who reaches" in line for line in lines) == warns


@pytest.mark.slow
def test_tls(folder: Path, tmp_path: Path) -> None:
    import ssl
    import urllib.request

    certificate, key = _certificate(tmp_path)
    command = [*COMMAND, str(folder / "affine.llmos"), "--tls-cert", str(certificate), "--tls-key", str(key)]
    with running(command) as server:
        context = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(f"https://localhost:{server.port}/v2/health/live", context=context, timeout=60) as answer:
            assert answer.status == 200
    for wrong in (folder / "affine.llmos", tmp_path / "missing"):
        command = [*COMMAND, str(folder / "affine.llmos"), "--tls-cert", str(wrong)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done


def _certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of localhost that signs itself, and its key."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    certificate, key_file = folder / "cert.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return certificate, key_file
