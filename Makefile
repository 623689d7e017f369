# Everything here sets itself up: a .venv in the clone with the pinned packages of constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: demo help study test test-slow lint docs mutants install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## make a pair of models from the shipped world and audit it: runs/demo/audit/audit.html
	$(BIN)/python docs/demo.py runs/demo

study: $(STAMP) ## run the default study: runs/tiny/report.html
	$(BIN)/knowshift study --preset tiny --output-dir runs/tiny

test: $(STAMP) ## run the tests that take seconds
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(STAMP) ## run the others: whole studies and audits again, clusters, packages, servers
	$(BIN)/python -m pytest -m slow

docs: $(STAMP) ## build the documentation: docs/_build/index.html
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs docs/_build

# Which tests run which line is measured anew only where they changed.
mutants: $(STAMP) ## change one number at a time and see which tests fail (hours; goes on where it stopped)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,mutants]'
	$(BIN)/python mutation/run.py measure
	$(BIN)/python mutation/run.py run
	$(BIN)/python mutation/run.py table

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(STAMP) ## install into .venv, with the pinned packages

# torch first and by itself, at its pinned version: an index may then serve a small CPU build of it.
$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard src/knowshift/*/*/*.c)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean: ## remove .venv
	rm -rf $(VENV)
