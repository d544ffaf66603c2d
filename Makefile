# `make` lists the targets.
.DEFAULT_GOAL := help
PYTHON ?= python
.PHONY: help install check format test slow quickstart ci clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install:  ## editable, with everything for tests and development
	$(PYTHON) -m pip install -e '.[test,dev]'

check:  ## lint, format and types, changing nothing
	ruff check .
	ruff format --check .
	pyright

format:  ## put the code into shape
	ruff check --fix .
	ruff format .

test:  ## the default suite, about four minutes on two cores
	$(PYTHON) -m pytest

slow:  ## what the default suite leaves out
	$(PYTHON) -m pytest -n 0 -m slow

quickstart:  ## the whole pipeline on the simulator
	$(PYTHON) scripts/quickstart.py

ci:  ## install, test and run in a new virtual environment
	.ci/run

clean:  ## remove caches and build products; runs/ stays
	rm -rf build dist .pytest_cache .ruff_cache .jax_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
