PYTHON ?= python3
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
COMPILED := $(wildcard codec/*.pyx codec/*.pxd)

.DEFAULT_GOAL := help
.PHONY: help build servers check format test matrix fuzz simulate histories demo bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: $(VENV)/.compiled ## make the environment in .venv and compile the transcoder

# The lock says exactly what is installed; the project itself is added without looking at its dependencies again.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make build PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "What is needed is installed in $(VENV): minutes, the first time."
	@$(BIN)/pip install -q --disable-pip-version-check -r requirements.lock
	@PYTHONWARNINGS=ignore $(BIN)/pip install -q --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.compiled: $(VENV)/.installed setup.py $(COMPILED)
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

servers: build ## fetch what the test servers need (once)
	@$(BIN)/python -m control.servers

check: build ## look at format, lint, types and layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: build ## write the format and mend what lint can mend
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

test: servers ## run all tests (ARGS=... is handed to pytest)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

matrix: servers ## run what is marked `versions` on every pair of PostgreSQL versions (PAIRS=14-18,17-17 ARGS=...)
	@$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m versions --pairs $(or $(PAIRS),all) $(ARGS)

fuzz: build ## fuzz every decoder (ARGS="--seconds N TARGET...", for each)
	@$(BIN)/python -m tests.fuzz $(ARGS)

simulate: build ## run histories with faults in the simulated world (ARGS="--histories N --seed S --jobs J")
	@$(BIN)/python -m tests.simulation $(ARGS)

histories: servers ## run random histories of rows, definitions and kills on real servers (ARGS="--histories N --seed S")
	@$(BIN)/python -m tests.histories $(ARGS)

demo: build ## replicate between two servers of its own (LOG=kafka for Kafka)
	@$(BIN)/python -m control.demo $(if $(LOG),--log $(LOG))

bench: build ## measure rows a second and latency (ARGS=...)
	@$(BIN)/python -m bench $(ARGS)

clean: ## remove the environment, caches and everything compiled
	@rm -rf $(VENV) .cache build dist *.egg-info codec/*.c codec/*.so
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
