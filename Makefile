# make train     everything from a fresh machine: make .venv, install, then python train.py $(ARGS)
# make test      lint, types, tests (pytest $(ARGS))
# make torture   the tests that take minutes
# make docs      the documentation as a site in site/
# make clean     removes what the other targets made, except .venv and outputs/

PYTHON ?= python3
PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
LISTS := pyproject.toml setup.py requirements.txt $(wildcard requirements/*.txt)

.PHONY: train test lint types unit torture docs clean

train: $(VENV)/installed
	$(BIN)/python train.py $(ARGS)

test: lint types unit

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/mypy

# One thread per process. Files stay together, so that each trains its fixtures once; tests/conftest.py puts the longest
# ones first.
unit: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

torture: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m torture $(ARGS)

docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf site build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find hawq scripts tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: $(LISTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@
