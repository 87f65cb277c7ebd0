"""The C core by itself: the example program, sanitizer builds, the pool, the build of the headers as C++."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmos.runtime.native.binding import core

from .handwritten import NATIVE, SCALE, SHIFT, compile_c

HERE = Path(__file__).parent
SOURCES = sorted(NATIVE.glob("*.c"))


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env={**os.environ, **environment})


def compile_with_core(output: Path, source: str, *options: str) -> Path:
    return compile_c(output, "-O1", "-g", *options, "-I", NATIVE, HERE / source, *SOURCES, "-lpthread", "-ldl")


def has_sanitizer(name: str, folder: Path) -> bool:
    source = folder / "empty.c"
    source.write_text("int main(void) { return 0; }\n")
    done = run("cc", f"-fsanitize={name}", source, "-o", folder / "empty")
    return done.returncode == 0 and run(folder / "empty").returncode == 0


def test_a_c_program_runs_an_artifact(artifact_path: Path, tmp_path: Path) -> None:
    library = core().path
    program = compile_c(tmp_path / "run", NATIVE / "examples" / "run.c", library, f"-Wl,-rpath,{library.parent}")
    done = run(program, artifact_path, "3")
    assert done.returncode == 0, done.stderr
    expected = " ".join(f"{value:g}" for value in np.ones(4, np.float32) * SCALE + SHIFT)
    assert done.stdout == f"y: {expected}\n"
    refused = run(program, artifact_path, "1001")
    assert refused.returncode == 2 and 'input "x": dim 0 (batch) is 1001' in refused.stderr
    assert "No such file" in run(program, tmp_path / "missing.llmos").stderr
    updated = run(program, artifact_path, "--entry", "write", "--times", "3", "5", "2")
    assert re.fullmatch(r"fastest of 3: [0-9.]+ ms\ntable: 1 1 1 1\n", updated.stdout), updated.stderr
    assert "there is no entry -1" in run(program, artifact_path, "--entry", "nothing").stderr


def test_the_core_needs_nothing_but_libc() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("there is no readelf")
    needed = [line for line in run("readelf", "-d", core().path).stdout.splitlines() if "(NEEDED)" in line]
    assert needed and all("libc.so" in line or "ld-linux" in line or "pthread" in line or "libdl" in line for line in needed)


def test_the_headers_are_cpp_too(tmp_path: Path) -> None:
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    source = tmp_path / "t.cc"
    source.write_text("#include <llmos/sampling.h>\nint main() { return sizeof(DLTensor) != 48 || sizeof(TVMFFIAny) != 16 || LLMOS_OK; }\n")
    done = run("c++", "-Wall", "-Wextra", "-Werror", "-I", NATIVE / "include", "-c", source, "-o", tmp_path / "t.o")
    assert done.returncode == 0, done.stderr


def test_mutated_artifacts_under_the_address_sanitizer(small_path: Path, tmp_path: Path) -> None:
    if not has_sanitizer("address,undefined", tmp_path):
        pytest.skip("this compiler has no address sanitizer")
    fuzz = compile_with_core(tmp_path / "fuzz", "fuzz_artifact.c", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    done = run(fuzz, small_path, "1", os.environ.get("LLMOS_FUZZ_CASES", "1500"), LLMOS_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    # Some must get through to what lies behind the checksums, or nothing there was tried.
    assert all(int(count) > 0 for count in re.findall(r"\d+", done.stdout)) and done.stdout.startswith("accepted: zips "), done.stdout


def test_pool(tmp_path: Path) -> None:
    done = run(compile_with_core(tmp_path / "pool", "pool_test.c", "-O2"), LLMOS_NUM_THREADS="2")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pool_benchmark_runs(tmp_path: Path) -> None:
    """Its figures depend on the machine and on what else runs there: benchmarks/threads.py judges them."""
    done = run(compile_with_core(tmp_path / "fork_join", "../../benchmarks/fork_join.c", "-O2"), "2")
    assert done.returncode == 0, done.stdout + done.stderr
    alone_ns, together_ns, idle_us = map(int, done.stdout.split())
    assert alone_ns > 0 and together_ns > 0 and idle_us >= 0


def test_pool_under_the_thread_sanitizer(tmp_path: Path) -> None:
    if not has_sanitizer("thread", tmp_path):
        pytest.skip("this compiler has no thread sanitizer")
    done = run(compile_with_core(tmp_path / "pool", "pool_test.c", "-fsanitize=thread"), LLMOS_NUM_THREADS="2")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_programs_under_the_thread_sanitizer(artifact_path: Path, tmp_path: Path) -> None:
    if not has_sanitizer("thread", tmp_path):
        pytest.skip("this compiler has no thread sanitizer")
    done = run(compile_with_core(tmp_path / "program", "program_test.c", "-fsanitize=thread"), artifact_path, LLMOS_NUM_THREADS="2")
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_sha256_with_and_without_its_instructions(tmp_path: Path) -> None:
    source = tmp_path / "hash.c"
    source.write_text(
        '#include "core.h"\n#include <stdio.h>\n'
        "#ifdef PORTABLE\nbool host_has(const char* name) { return !name; }\n#endif\n"
        "int main(void) { static uint8_t data[4096]; uint8_t digests[2][32];\n"
        "for (int i = 0; i < 4096; ++i) data[i] = (uint8_t)(i * 7 + i / 256);\n"
        "for (int size = 0; size < 300; ++size) { sha256((const uint8_t*[]){data, data + 100}, (size_t)size, 2, digests);\n"
        'for (int i = 0; i < 64; ++i) printf("%02x%s", digests[i / 32][i % 32], i % 32 == 31 ? "\\n" : "");\n'
        "sha256((const uint8_t*[]){data + 1}, (size_t)size, 1, digests);\n"
        'for (int i = 0; i < 32; ++i) printf("%02x%s", digests[0][i], i == 31 ? "\\n" : ""); } return 0; }\n'
    )
    data = bytes(i * 7 + i // 256 & 0xFF for i in range(4096))
    expected = [hashlib.sha256(data[start : start + size]).hexdigest() for size in range(300) for start in (0, 100, 1)]
    for options, sources in (([], SOURCES), (["-DPORTABLE"], [NATIVE / "sha256.c"])):
        program = compile_c(tmp_path / "hash", "-O2", "-I", NATIVE, *options, source, *sources, "-lpthread", "-ldl")
        assert run(program).stdout.split() == expected


def test_num_threads_from_the_environment() -> None:
    script = "from llmos.runtime.native.binding import num_threads; print(num_threads())"
    assert run(sys.executable, "-c", script, LLMOS_NUM_THREADS="3").stdout == "3\n"
    # Not compared with this process, whose number a test before this one may have set.
    default = run(sys.executable, "-c", script, LLMOS_NUM_THREADS="").stdout
    assert run(sys.executable, "-c", script, LLMOS_NUM_THREADS="nonsense").stdout == default
