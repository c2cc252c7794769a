# Every target sets itself up: Python 3.11+ and make are all that a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The first release that installs dependency groups.
PIP_WITH_GROUPS := pip>=25.1
# Progress of a package installer is noise here; its errors are not.
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install

.PHONY: help demo test proofs lint wheel bench format clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(VENV)/run.stamp: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(PIP_WITH_GROUPS)"
	$(PIP) -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(PIP) --group test
	@touch $@

$(VENV)/lint.stamp: $(VENV)/test.stamp
	$(PIP) --group lint
	@touch $@

demo: $(VENV)/run.stamp ## Set up, then estimate the energy of a real trace
	$(BIN)/infergy estimate azure-conv-2023
	@echo 'Next: . $(BIN)/activate; infergy --help'

test: $(VENV)/test.stamp ## Set up, then run the tests (no GPU, no network)
	$(BIN)/python -m pytest -n auto -m "not slow"

proofs: $(VENV)/test.stamp ## The slow tests: proofs by simulation, the shipped table built anew
	$(BIN)/python -m pytest -n auto -m slow

lint: $(VENV)/lint.stamp ## Style, types and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/lint.stamp ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(VENV)/run.stamp ## Build dist/infergy-*.whl
	rm -rf dist
	$(BIN)/python -m pip --quiet wheel --no-deps --wheel-dir dist .

bench: $(VENV)/test.stamp ## Speed and memory, beside the alternatives (writes 1.4 GB to a temporary folder)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/gpu_seconds.py
	$(BIN)/python benchmarks/proof.py
	$(BIN)/python benchmarks/repeatability.py
	$(BIN)/python benchmarks/kill.py
	$(BIN)/python benchmarks/trace_csv.py
	$(BIN)/python benchmarks/trace_parquet.py
	$(BIN)/python benchmarks/many_rows.py
	$(BIN)/python benchmarks/watch_cost.py

clean: ## Remove what the targets made
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
