# Everything here sets itself up: a .venv in the clone with the pinned packages of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: study test mutants lint install clean

study: $(STAMP)
	$(BIN)/knowshift study --preset tiny --output-dir runs/tiny

test: $(STAMP)
	$(BIN)/python -m pytest

# Hours: it goes on where it was stopped. Which tests look at which line is measured where they changed.
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mutants]'
	$(BIN)/python mutation/run.py measure
	$(BIN)/python mutation/run.py run
	$(BIN)/python mutation/run.py table

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(STAMP)

# torch first and by itself, at its pinned version: an index may then serve a small CPU build of it.
$(STAMP): pyproject.toml constraints.txt hatch_build.py src/knowshift/parameters/kernels/kernels.c
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV)
