"""A repository of models: its versions, its policies, and who may change what is served."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from llmos.runtime.errors import UserError
from llmos.runtime.server.core.repository import ModelControl, Repository, VersionPolicy

from ..cli_runtime.artifacts import affine_artifact  # noqa: TID252
from .harness import Server, affine_body, running, wait_for
from .test_artifacts import COMMAND

INDEX = "/v2/repository/index"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """y = factor x + 1, by factor."""
    folder = tmp_path_factory.mktemp("artifacts")
    return {factor: affine_artifact(folder / f"affine{factor}.llmos", factor=factor) for factor in (2, 3)}


Add = Callable[..., Path]


@pytest.fixture
def add(artifacts: dict[int, Path], tmp_path: Path) -> Add:
    """Put a version into the repository of a test, at once."""

    def put(model: str, version: int, factor: int) -> Path:
        target = tmp_path / model / str(version) / "model.llmos"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(artifacts[factor], target.with_suffix(".new"))
        return target.with_suffix(".new").rename(target)

    return put


@pytest.fixture
def explicit(add: Add, tmp_path: Path) -> Iterator[Server]:
    """A server of a repository of which nothing is loaded, with an admin port, and the API for clients, too."""
    add("affine", 1, 2)
    options = ["--model-repository", str(tmp_path), "--model-control", "explicit", "--admin-port", "0", "--repository-api"]
    with running([*COMMAND, *options]) as server:
        yield server


def infer(server: Server, model: str, version: str = "") -> tuple[int, Any]:
    """The status, and the version with the first element of the answer for 1."""
    at = f"/versions/{version}" if version else ""
    answer = server.request("POST", f"/v2/models/{model}{at}/infer", affine_body([1, 2, 3]))
    found = answer.json()
    return answer.status, (found["model_version"], found["outputs"][0]["data"][0]) if answer.status == 200 else found["error"]


@given(st.sets(st.integers(1, 50)), st.integers(1, 9), st.sets(st.integers(1, 50), min_size=1))
def test_policies(versions: set[int], count: int, wanted: set[int]) -> None:
    assert VersionPolicy.parse("all").choose(versions) == sorted(versions)
    assert VersionPolicy.parse("latest").choose(versions) == sorted(versions)[-1:]
    assert VersionPolicy.parse(f"latest:{count}").choose(versions) == sorted(versions)[-count:]
    assert VersionPolicy.parse("specific:" + ",".join(map(str, wanted))).choose(versions) == sorted(versions & wanted)


@pytest.mark.parametrize(
    "text", ["", "latest:", "latest:0", "latest:-1", "latest:x", "specific", "specific:", "specific:1,", "all:1", "none"]
)
def test_wrong_policies(text: str) -> None:
    with pytest.raises(UserError, match="is no version policy"):
        VersionPolicy.parse(text)


@pytest.mark.parametrize("text", ["", "poll:", "poll:0", "poll:nan", "poll:inf", "poll:x", "explicit:1", "all"])
def test_wrong_controls(text: str) -> None:
    with pytest.raises(UserError, match="model control"):
        ModelControl.parse(text)


def test_what_the_folder_holds(tmp_path: Path) -> None:
    for path in (
        "a/1/model.llmos",
        "a/10/model.llmos",
        "a/2/model.llmos",
        "a/03/model.llmos",
        "a/x/model.llmos",
        "a/4/other",
        ".git/1/model.llmos",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "readme").touch()
    repository = Repository(folder=tmp_path, policies={"a": VersionPolicy.parse("latest:2")})
    assert repository.names() == ["a"]
    assert list(repository.versions("a")) == [1, 2, 10]
    assert list(repository.wanted("a")) == [2, 10]
    assert repository.versions("../a") == repository.versions("b") == {}
    with pytest.raises(UserError, match="two models are named 'a'"):
        Repository({"a": tmp_path / "a.llmos"}, tmp_path)
    with pytest.raises(UserError, match="is no folder"):
        Repository(folder=tmp_path / "missing")


def test_versions_are_served_by_policy(add: Add, tmp_path: Path) -> None:
    for version in (1, 2, 3):
        add("affine", version, 2 + version % 2)
    add("other", 7, 2)
    options = ["--model-repository", str(tmp_path), "--version-policy", "affine=specific:1,3"]
    with running([*COMMAND, *options]) as server, triton.InferenceServerClient(server.address) as client:
        assert infer(server, "affine") == (200, ("3", 4.0)), "the highest"
        assert infer(server, "affine", "1") == (200, ("1", 4.0))
        assert infer(server, "affine", "2") == (404, "model 'affine' has no version '2', only '1', '3'")
        assert infer(server, "other") == (200, ("7", 3.0))
        assert client.get_model_metadata("affine")["versions"] == ["1", "3"]
        assert [client.is_model_ready("affine", version) for version in ("1", "2", "3")] == [True, False, True]
        assert server.request("POST", INDEX).status == 404, "clients change no models unless they may"
        assert server.stop() == 0


def test_a_model_is_loaded_and_unloaded_by_a_client(explicit: Server, add: Add) -> None:
    with triton.InferenceServerClient(explicit.address) as client:
        assert "model_repository" in client.get_server_metadata()["extensions"]
        assert client.get_model_repository_index() == [{"name": "affine", "version": "1", "state": "UNAVAILABLE", "reason": "not loaded"}]
        assert infer(explicit, "affine") == (404, "model 'affine' is not served here: there is none")
        client.load_model("affine")
        assert infer(explicit, "affine") == (200, ("1", 3.0))
        add("affine", 2, 3)
        client.load_model("affine")
        assert infer(explicit, "affine") == (200, ("2", 4.0))
        states = {state["version"]: (state["state"], state["reason"]) for state in client.get_model_repository_index()}
        assert states["2"] == ("READY", "")
        wait_for(lambda: [state["state"] for state in client.get_model_repository_index()] == ["UNAVAILABLE", "READY"])
        assert client.get_model_repository_index()[0]["reason"] == "not in the version policy"
        client.unload_model("affine")
        assert not client.is_model_ready("affine")
        for change in (client.unload_model, client.load_model):
            with pytest.raises(InferenceServerException, match=r"not served here|no version in the repository"):
                change("affine" if change == client.unload_model else "nothing")
        with pytest.raises(InferenceServerException, match="'config' isn't supported"):
            client.load_model("affine", config="{}")
    lines = explicit.get("/metrics").body.decode()
    assert 'llmos_request_success_total{finished_reason="stop",model_name="affine"} 2' in lines, "warming up is no request"


def test_a_broken_artifact_leaves_the_old_one_serving(explicit: Server, add: Add, tmp_path: Path) -> None:
    assert explicit.admin("/v2/repository/models/affine/load").status == 200
    broken = add("affine", 2, 3)
    os.truncate(broken, broken.stat().st_size // 2)
    answer = explicit.admin("/v2/repository/models/affine/load")
    assert answer.status == 400
    assert answer.json()["error"].startswith(f"model 'affine' can't be loaded: {broken}: ")
    assert answer.json()["error"].endswith("; version 1 serves on")
    assert infer(explicit, "affine") == (200, ("1", 3.0))
    states = {state["version"]: state for state in explicit.admin(INDEX).json()}
    assert (states["1"]["state"], states["2"]["state"]) == ("READY", "UNAVAILABLE")
    assert "can't be loaded" in states["2"]["reason"]
    assert [state["version"] for state in explicit.admin(INDEX, {"ready": True}).json()] == ["1"]
    add("affine", 2, 3)
    assert explicit.admin("/v2/repository/models/affine/load").status == 200
    assert infer(explicit, "affine") == (200, ("2", 4.0))


def test_wrong_bodies_of_a_load(explicit: Server) -> None:
    for body in (b"[]", b"{", {"parameters": []}, {"parameters": {"file:1/model.llmos": "x"}}, b" " * 70_000):
        answer = explicit.admin("/v2/repository/models/affine/load", body)
        assert answer.status in (400, 413)
        assert answer.json()["error"]
        assert explicit.admin(INDEX).json()[0]["state"] == "UNAVAILABLE"


def test_a_folder_is_followed(add: Add, tmp_path: Path) -> None:
    add("affine", 1, 2)
    options = ["--model-repository", str(tmp_path), "--model-control", "poll:0.05", "--admin-port", "0"]
    with running([*COMMAND, *options]) as server:
        assert infer(server, "affine") == (200, ("1", 3.0))
        add("affine", 2, 3)
        wait_for(lambda: infer(server, "affine") == (200, ("2", 4.0)))
        add("affine", 2, 2)  # the same version, from another file
        wait_for(lambda: infer(server, "affine") == (200, ("2", 3.0)))
        shutil.rmtree(tmp_path / "affine" / "2")
        wait_for(lambda: infer(server, "affine") == (200, ("1", 3.0)))
        add("added", 1, 3)
        wait_for(lambda: infer(server, "added")[0] == 200)
        (tmp_path / "affine" / "9").mkdir()
        (tmp_path / "affine" / "9" / "model.llmos").write_bytes(b"broken")
        wait_for(lambda: any("can't be loaded" in line for line in server.log))
        shutil.rmtree(tmp_path / "added")
        wait_for(lambda: infer(server, "added")[0] == 404)
        assert infer(server, "affine") == (200, ("1", 3.0))
        assert sum("can't be loaded" in line for line in server.log) == 1, "one failure is said once"
        answer = server.admin("/v2/repository/models/affine/load")
        assert (answer.status, "follows the folder" in answer.json()["error"]) == (400, True)
        assert server.stop() == 0


def test_a_folder_that_cannot_be_read_unloads_nothing(add: Add, tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    (add("affine", 1, 2).parents[1]).rename(tmp_path / "kept")
    folder.mkdir()
    (tmp_path / "kept").rename(folder / "affine")
    options = ["--model-repository", str(folder), "--model-control", "poll:0.05", "--admin-port", "0"]
    with running([*COMMAND, *options]) as server:
        (folder / "loop").symlink_to("loop")
        (folder / "affine" / "loop").symlink_to("loop")
        (folder / "affine" / "2").mkdir()
        (folder / "affine" / "2" / "model.llmos").symlink_to("model.llmos")
        wait_for(lambda: any("can't be loaded" in line for line in server.log))
        assert infer(server, "affine") == (200, ("1", 3.0))
        folder.rename(tmp_path / "away")  # as a volume that is not mounted for a while
        wait_for(lambda: any("can't read the model repository's folder" in line for line in server.log))
        assert infer(server, "affine") == (200, ("1", 3.0))
        assert server.admin(INDEX).status == 500
        (tmp_path / "away").rename(folder)
        (folder / "affine" / "2" / "model.llmos").unlink()
        for _ in range(2):
            (folder / "affine").rename(tmp_path / "moved")
            wait_for(lambda: infer(server, "affine")[0] == 404)
            (tmp_path / "moved").rename(folder / "affine")  # the same files
            wait_for(lambda: infer(server, "affine") == (200, ("1", 3.0)), 5)
        assert sum("can't read" in line and "stay as they are" in line for line in server.log) == 1
        assert server.stop() == 0


def test_a_model_that_is_named_twice_at_the_start_is_loaded_once(add: Add, artifacts: dict[int, Path], tmp_path: Path) -> None:
    add("affine", 1, 2)
    options = [f"other={artifacts[3]}", "--model-repository", str(tmp_path), *["--load-model", "affine"] * 2, "--load-model", "other"]
    with running([*COMMAND, *options]) as server:
        assert infer(server, "affine") == (200, ("1", 3.0))
        assert infer(server, "other") == (200, ("1", 4.0))


def test_a_named_artifact_is_loaded_again_from_its_file(artifacts: dict[int, Path], tmp_path: Path) -> None:
    path = tmp_path / "affine.llmos"
    shutil.copy(artifacts[2], path)
    with running([*COMMAND, f"affine={path}", "--admin-port", "0"]) as server:
        shutil.copy(artifacts[3], tmp_path / "new")
        (tmp_path / "new").rename(path)
        assert infer(server, "affine") == (200, ("1", 3.0))
        assert server.admin("/v2/repository/models/affine/load").status == 200
        assert infer(server, "affine") == (200, ("1", 4.0))
        assert server.admin("/v2/repository/models/affine/reload").status == 200
        assert infer(server, "affine") == (200, ("1", 4.0))
        assert server.admin("/v2/repository/models/none/reload").status == 404
        assert server.request("POST", "/v2/repository/models/affine/unload").status == 404, "not at the port of clients"
        assert server.admin("/v2/repository/models/affine/unload").status == 200
        assert infer(server, "affine")[0] == 404


def test_admin_needs_its_own_keys(artifacts: dict[int, Path], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("client\n")
    (tmp_path / "admin").write_text("operator\n")
    options = ["--api-keys-file", str(tmp_path / "keys"), "--admin-keys-file", str(tmp_path / "admin"), "--repository-api"]
    with running([*COMMAND, f"affine={artifacts[2]}", *options, "--admin-port", "0"]) as server:
        for port in (server.port, server.admin_port):
            statuses = [
                server.request("POST", INDEX, headers=headers, port=port).status
                for headers in ({}, {"X-Api-Key": "client"}, {"X-Api-Key": "operator"})
            ]
            assert statuses == [401, 401, 200]
        assert server.request("GET", "/metrics", headers={"X-Api-Key": "client"}, port=server.admin_port).status == 401
        assert server.request("GET", "/v2", headers={"X-Api-Key": "operator"}).status == 401
        assert server.request("GET", "/v2/health/ready", port=server.admin_port).status == 200


def test_admin_is_not_for_web_pages_nor_for_everyone(artifacts: dict[int, Path]) -> None:
    command = [*COMMAND, f"affine={artifacts[2]}", "--admin-port", "0"]
    with running(command) as server:
        assert server.admin("/v2/repository/models/affine/unload", Origin="http://evil.example").status == 403
        assert server.admin("/drain", Origin="null").status == 403
        assert infer(server, "affine")[0] == 200
    done = subprocess.run([*command, "--admin-host", "0.0.0.0"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n"), "--admin-keys-file" in done.stderr) == (2, 1, True), done
    command = [*COMMAND, f"affine={artifacts[2]}", "--host", "0.0.0.0", "--repository-api"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n"), "--admin-keys-file" in done.stderr) == (2, 1, True), done


def test_drain_ends_the_server_as_a_signal_does(artifacts: dict[int, Path]) -> None:
    with running([*COMMAND, f"affine={artifacts[2]}", "--admin-port", "0"]) as server:
        answer = server.admin("/drain")
        assert (answer.status, answer.json()) == (202, {"draining": True})
        assert server.process.wait(60) == 0


@pytest.mark.sample(0, 5)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model-repository", "MISSING"], "is no folder"),
        (["--model-repository", "FOLDER", "--version-policy", "newest"], "is no version policy"),
        (["--model-repository", "FOLDER", "--version-policy", "all", "--version-policy", "latest"], "both for all models"),
        (["--model-repository", "FOLDER", "--model-control", "poll:x"], "model control"),
        (["--model-repository", "FOLDER", "--load-model", "none"], "no version in the repository"),
        (["--model-repository", "FOLDER"], "can't be loaded"),
    ],
)
def test_wrong_use_is_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    import re

    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.llmos").write_bytes(b"no artifact")
    command = [*COMMAND, *(option.replace("FOLDER", str(tmp_path)).replace("MISSING", str(tmp_path / "x")) for option in options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
    assert re.search(message, done.stderr)
