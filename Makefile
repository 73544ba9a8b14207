# Every target works on a fresh machine that has Python >= 3.11 and make.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: setup demo lint test test-openapi test-slow test-gpu test-browser test-cluster test-sweep format bench-overhead bench-peers bench-labels bench-options bench-samplers bench-clips bench-clip-servers bench-serve bench-serve-chaos bench-peer-labels bench-explain bench-scale clean

# The stamp is newer than the files that say what to install, or setup runs again.
setup: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/themis train tune_configs/pendulum.yaml

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The linter and the tests of the API keep one core busy each. schemathesis gives its tests one node id together, and of
# those pytest-xdist would run one and not say so. Of the rest, half wait for Ray to start and stop.
test: setup
	$(MAKE) --no-print-directory -j2 --output-sync=line lint test-openapi
	$(BIN)/pytest -n 3 --dist loadfile --ignore tests/labeling/test_openapi.py

test-openapi: setup
	$(BIN)/pytest tests/labeling/test_openapi.py

test-slow: setup
	$(BIN)/pytest -m slow --timeout 1800

test-gpu: setup
	$(BIN)/pytest -m gpu

# With THEMIS_SCREENSHOTS=1 it also writes docs/images/labelling-*.png.
test-browser: setup
	$(BIN)/pytest -m browser tests/browser

test-sweep: setup
	$(BIN)/pytest -m "ray and (slow or not slow)" tests/sweeping

test-cluster: setup
	$(BIN)/pytest -m cluster --timeout 900 tests/cluster

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-overhead: setup
	$(BIN)/python -m benchmarks.overhead

bench-labels: setup
	$(BIN)/python -m benchmarks.labels

bench-options: setup
	$(BIN)/python -m benchmarks.options

bench-samplers: setup
	$(BIN)/python -m benchmarks.samplers

bench-clips: setup
	$(BIN)/python -m benchmarks.clips

bench-clip-servers: setup
	$(BIN)/python -m benchmarks.clip_servers

bench-serve: setup
	$(BIN)/python -m benchmarks.serve

bench-serve-chaos: setup
	$(BIN)/python -m benchmarks.serve --chaos

bench-peer-labels: setup
	$(BIN)/python -m benchmarks.peer_labels

bench-explain: setup
	$(BIN)/python -m benchmarks.explanations

# Needs a machine with nothing else running; 25 minutes on two cores.
bench-scale: setup
	$(BIN)/python -m benchmarks.scale

bench-peers: setup
	$(BIN)/python -m benchmarks.peers

clean:
	rm -rf $(VENV) .venvs runs benchmarks/out .pytest_cache .mypy_cache .ruff_cache
