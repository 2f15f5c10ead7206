# Two commands are all: `make demo` and `make test`. Both set up .venv first if they must.
PYTHON ?= python3
BIN := .venv/bin
# A new module or template is not in an editable install yet: the name of the stamp follows the list of them.
MODULES := $(shell find __init__.py cli migrations plugins registry testing -name '*.py' -o -path '*/templates/*' | sort | cksum | cut -d' ' -f1)
INSTALLED := .venv/.installed-$(MODULES)
DEVELOPED := .venv/.developed-$(MODULES)

.PHONY: demo test check docs bench bench-quick clean

demo: $(INSTALLED)
	$(BIN)/taps-registry demo

test: $(DEVELOPED)
	$(BIN)/pytest --numprocesses auto --dist worksteal

check: $(DEVELOPED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

docs: $(DEVELOPED)
	$(BIN)/python docs/generate.py

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.suite.run
	$(BIN)/python -m benchmarks.suite.run --no-search
	$(BIN)/python -m benchmarks.suite.tables --readme

bench-quick: $(INSTALLED)
	$(BIN)/python -m benchmarks.suite.run --quick
	$(BIN)/python -m benchmarks.suite.tables --csv benchmarks/results/quick.csv

clean:
	rm -rf .venv build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=strict --editable .
	@touch $@

$(DEVELOPED): pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --config-settings editable_mode=strict --editable '.[dev]'
	@touch $@ $(INSTALLED)
