# Everything a newcomer or CI needs. `make run` and `make test` install what they need into .venv by themselves.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.DEFAULT_GOAL := help
.PHONY: help setup run test lint bench simulate lock clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(READY) ## Make .venv with everything pinned in requirements.lock, and .venv/bin/razao

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one: make PYTHON=/path/to/python3"; exit 1; }
	@echo "[1/3] making $(VENV) with $$($(PYTHON) --version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "this Python cannot make virtual environments (on Debian: apt-get install python3-venv)"; exit 1; }
	@echo "[2/3] installing what requirements.lock pins (some minutes the first time)"
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@echo "[3/3] compiling the ledger's kernel"
	@$(BIN)/python -m cluster.compile
	@touch $@

run: setup ## Start the engine with embedded defaults and a demo that shows money move; Ctrl-C stops it
	@$(BIN)/razao up --demo --accept-clock

test: setup ## Lint, types, import rules and every test
	@$(MAKE) --no-print-directory -j2 lint-and-unit-tests engine-tests

# Two lanes, as either keeps little more than one core busy. What the first one's tests say is shown at its end.
UNIT := tests/actors tests/model

.PHONY: lint-and-unit-tests
lint-and-unit-tests: lint
	@$(BIN)/python -m pytest $(UNIT) > $(VENV)/unit-tests.log 2>&1; code=$$?; cat $(VENV)/unit-tests.log; exit $$code

.PHONY: engine-tests
engine-tests:
	@$(BIN)/python -m pytest $(UNIT:%=--ignore=%)

lint: setup ## Lint, format, types and import rules alone
	@echo "ruff"; $(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .
	@echo "mypy"; $(BIN)/mypy
	@echo "import-linter"; $(BIN)/lint-imports --no-cache

bench: setup ## Measure everything in one run; see loadtests/bench.py --help for parts of it
	@$(BIN)/python -m loadtests.bench

TIME ?= 600
simulate: setup ## Search histories of faults on all cores for a claim that does not hold; TIME=600 seconds, SEED= replays one
	@$(BIN)/python -m tests.model.simulate $(if $(SEED),--seed $(SEED),--time $(TIME))

lock: ## Pin the newest versions that pyproject.toml allows
	@$(PIP) install uv && $(BIN)/uv pip compile pyproject.toml --extra dev --extra services --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-header --upgrade --quiet -o requirements.lock

clean: ## Remove the environment and caches, never data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
