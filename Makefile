# Everything that a person or a CI run does with this repository. `make` alone lists the targets.
#
# Needs: Python >= 3.10, a stable Rust toolchain, a C compiler, make. The rest is set up here: an environment of its own in
# .venv, made by uv (which links packages from its cache, so that a second environment costs next to nothing).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules --no-builtin-variables
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python

# A uv of this version or later from the PATH; otherwise one is installed into .uv.
UV_FLOOR := 0.8.0
ifndef UV
UV := $(shell [ "$$(printf '%s\n' $(UV_FLOOR) "$$(uv --version 2>/dev/null | cut -d' ' -f2)" | sort -V | head -n 1)" = $(UV_FLOOR) ] \
	&& command -v uv || echo $(CURDIR)/.uv/bin/uv)
endif
export UV
# maturin looks for uv on the PATH. No interpreter is ever downloaded; torch's wheels are large.
export PATH := $(CURDIR)/$(BIN):$(dir $(UV)):$(PATH)
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE ?= hardlink
export UV_HTTP_TIMEOUT ?= 300
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PYO3_PYTHON := $(CURDIR)/$(PY)
unexport CONDA_PREFIX PYTHONPATH PYTHONHOME

STARTED := $(or $(STARTED),$(shell date +%s))
heading = @printf '\n==> %s\n' $(1)

RUST_SOURCES := $(shell find rust -path '*/src/*.rs') $(wildcard rust/*/Cargo.toml) Cargo.toml Cargo.lock
PYTHON_SOURCES := $(shell find python -name '*.py' -o -name '*.pyi' -o -name py.typed) $(wildcard python/pagedkv/demo/*)
CUDA_SOURCES := $(wildcard cuda/*)
EXTENSION := python/pagedkv/_core.abi3.so
DEPENDENCIES := $(VENV)/.requirements-installed
WHEEL := dist/.wheel-built
# The oldest glibc that Rust's standard library supports; zig links against it whatever this machine has.
WHEEL_FLAGS := $(if $(filter Linux,$(shell uname -s)),--zig --compatibility manylinux_2_17)
BENCH_DIR := target/bench
# Processes of the Python tests: with two, each test still has a core of a small machine to itself.
TEST_WORKERS ?= 2
PYTHON_DIRS := python tests $(wildcard benches examples tools)
CARGO_TEST := $(if $(shell cargo nextest --version 2>/dev/null),cargo nextest run --locked --no-tests=pass,cargo test --locked --lib --bins --tests)

.PHONY: help
help: ## List the targets
	@echo "usage: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo "single steps of the above:"
	@awk -F ':.*#: ' '/^[a-z-]+:.*#: /{printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

# --- what people use -----------------------------------------------------------------------------

.PHONY: run test test-long bench lint wheel clean
run: setup ## Build everything, then stream text from the bundled model and show the KV cache's summary
	$(call heading,'the bundled model tells a story')
	@$(BIN)/pagedkv generate demo "Tell me a story about a fox." --max-tokens 120 --n 1 --seed 7

test: lint test-rust test-python test-wheel ## All that CI checks: lint, Rust and Python tests, the wheel in a clean environment
	@seconds=$$(( $$(date +%s) - $(STARTED) )); \
	printf '\n==> all checks passed in %d min %d s\n' $$((seconds / 60)) $$((seconds % 60))

test-long: setup ## The long simulations and property tests (ten million operations; up to an hour)
	$(call heading,'Rust: many more cases, and the long tests, in a release build')
	PROPTEST_CASES=$${PROPTEST_CASES:-20000} cargo test --locked --release -- --include-ignored
	$(call heading,'Python: property tests over many more examples')
	HYPOTHESIS_PROFILE=long $(PY) -m pytest -m 'hypothesis or slow' --timeout 3600

bench: setup ## The benchmarks of benches/ (Rust and Python), as recorded in benches/RESULTS.md
	$(call heading,'Rust benchmarks')
	cargo bench --locked --benches
	$(call heading,'Python benchmarks')
	$(PY) benches/step.py
	[ -e $(BENCH_DIR)/llama-32m/config.json ] || $(PY) benches/make_model.py $(BENCH_DIR)/llama-32m --size 32m
	$(PY) benches/workloads.py mixed --n 64 -o $(BENCH_DIR)/mixed-64.json
	$(PY) benches/throughput.py --model $(BENCH_DIR)/llama-32m --workload $(BENCH_DIR)/mixed-64.json \
		--engines pagedkv,hf-static,hf-continuous --rounds 3 --threads 2
	$(PY) benches/throughput.py --model $(BENCH_DIR)/llama-32m --workload $(BENCH_DIR)/mixed-64.json --check --threads 2
	$(PY) benches/step_breakdown.py --model $(BENCH_DIR)/llama-32m --threads 2
	$(PY) benches/startup.py
	$(PY) benches/fusion.py --threads 2
	$(PY) benches/sampling.py --threads 2
	$(PY) benches/sharing.py
	$(PY) benches/decoding.py --model $(BENCH_DIR)/llama-32m

lint: setup ## Format and lint checks: rustfmt, clippy, ruff, mypy --strict, the stub of _core
	$(call heading,'cargo fmt --check')
	cargo fmt --all -- --check
	$(call heading,'clippy')
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(call heading,'ruff')
	$(BIN)/ruff check $(PYTHON_DIRS)
	$(BIN)/ruff format --check $(PYTHON_DIRS)
	$(call heading,'mypy --strict')
	$(PY) -m mypy
	$(call heading,'stubtest: _core.pyi against the built module')
	cd python && ../$(PY) -m mypy.stubtest pagedkv._core --mypy-config-file ../pyproject.toml

wheel: $(WHEEL) ## Build the wheel into dist/
	@ls -l dist/*.whl

clean: ## Remove what was built (not the environment: rm -rf .venv .uv)
	rm -rf target dist build $(EXTENSION) .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find python tests benches tools examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# --- single steps --------------------------------------------------------------------------------

.PHONY: setup fmt lock models test-rust test-python test-wheel
setup: $(EXTENSION) #: Environment, dependencies and the extension module

fmt: setup #: Format all sources in place
	cargo fmt --all
	$(BIN)/ruff check --fix-only $(PYTHON_DIRS)
	$(BIN)/ruff format $(PYTHON_DIRS)

lock: $(UV) #: Resolve the dependencies anew into requirements.lock
	$(UV) pip compile --universal --python-version 3.10 --upgrade --no-annotate --group dev \
		--custom-compile-command 'make lock' pyproject.toml --output-file requirements.lock

models: setup #: Run every causal model type of transformers; the table and docs/models.md
	$(PY) tools/sweep_models.py

test-rust: $(DEPENDENCIES) #: Unit, property, simulation and documentation tests of the crates
	$(call heading,'Rust tests')
	$(CARGO_TEST)
	$(call heading,'Rust documentation tests')
	cargo test --locked --doc

test-python: setup #: The default pytest run
	$(call heading,'Python tests')
	$(PY) -m pytest -n $(TEST_WORKERS) --dist worksteal

test-wheel: $(WHEEL) #: Contents of the wheel, every Python at hand, a clean environment
	$(call heading,'wheel checks')
	$(PY) tools/check_wheel.py dist/*.whl --uv $(UV) --constraints requirements.lock

# --- files ---------------------------------------------------------------------------------------

$(CURDIR)/.uv/bin/uv:
	$(call heading,'installing uv into .uv')
	@rm -rf .uv; \
	{ $(PYTHON) -m venv .uv && .uv/bin/python -m pip install --quiet 'uv>=$(UV_FLOOR)'; } \
	|| { rm -rf .uv; $(PYTHON) -m pip install --quiet --target .uv 'uv>=$(UV_FLOOR)'; } \
	|| { rm -rf .uv; echo "error: no uv >= $(UV_FLOOR), and neither 'python3 -m venv' nor pip to install it;" \
		"on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$@ --version

$(PY): | $(UV)
	@command -v cargo >/dev/null \
	|| { echo "error: cargo not found; install a stable Rust toolchain (1.89 or later)" >&2; exit 1; }
	@command -v cc >/dev/null \
	|| { echo "error: no C compiler (cc); on Debian: apt-get install build-essential" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	|| { echo "error: $(PYTHON) is older than Python 3.10; name another with make PYTHON=..." >&2; exit 1; }
	$(call heading,'making the environment $(VENV)')
	$(UV) venv --quiet --allow-existing --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV)

$(DEPENDENCIES): requirements.lock | $(PY)
	$(call heading,'installing the dependencies (the first time: several GB for torch)')
	$(UV) pip install --python $(PY) --compile-bytecode -r requirements.lock
	@touch $@

$(EXTENSION): $(RUST_SOURCES) $(DEPENDENCIES) pyproject.toml
	$(call heading,'building pagedkv._core (release) and installing pagedkv in place')
	$(BIN)/maturin develop --release --locked --uv
	@touch $@

$(WHEEL): $(RUST_SOURCES) $(PYTHON_SOURCES) $(CUDA_SOURCES) $(DEPENDENCIES) pyproject.toml README.md LICENSE
	$(call heading,'building the wheel')
	@rm -rf dist
	$(BIN)/maturin build --release --locked $(WHEEL_FLAGS) --out dist
	@touch $@
