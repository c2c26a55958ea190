# Works with GNU make and Python 3.10 to 3.13, nothing else installed. Every target does its own set-up.
#   PYTHON=python3.12   interpreter to build the environment with
#   VENV=.venv          where the environment is
#   PIP_ARGS=...        extra arguments of `pip install`, for example the index of CPU-only torch builds

VENV ?= .venv
PIP_ARGS ?=
SHELL := /bin/sh
.DEFAULT_GOAL := help

bin := $(VENV)/bin
train_stamp := $(VENV)/.installed-train
dev_stamp := $(VENV)/.installed-dev
pins := pyproject.toml constraints.txt

# First interpreter that starts and is new enough; a pyenv shim may exist and still not start.
find_python = for p in python3 python3.13 python3.12 python3.11 python3.10 /usr/bin/python3; do \
	"$$p" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && echo "$$p" && break; \
	done
PYTHON ?= $(shell $(find_python))

.PHONY: help setup demo test test-all check format bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

setup: $(dev_stamp)  ## make .venv with everything to train, test and develop

demo: $(train_stamp)  ## run the whole loop: train, export, serve, robot, log, learn, report
	$(bin)/mpo-robot demo

test: $(dev_stamp)  ## run the tests that take seconds each, one process per core
	$(bin)/python -m pytest -n auto --dist worksteal

test-all: $(dev_stamp)  ## run also the slow tests
	$(bin)/python -m pytest -n auto --dist worksteal -m "not gpu and not hardware and not network"

check: $(dev_stamp)  ## format, lint, types, import contracts, spelling; writes nothing
	$(bin)/ruff format --check .
	$(bin)/ruff check .
	$(bin)/pyright --pythonpath $(bin)/python
	$(bin)/lint-imports --no-cache
	$(bin)/codespell

format: $(dev_stamp)  ## rewrite the sources in the project's format
	$(bin)/ruff format .
	$(bin)/ruff check --fix .

bench: $(dev_stamp)  ## run the benchmarks and store their results
	$(bin)/mpo-robot bench

clean:  ## remove the environment, caches and build products; keeps runs/
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(bin)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.10 to 3.13 found; say which with PYTHON=/path/to/python3"; exit 1; }
	"$(PYTHON)" -c 'import sys; assert (3, 10) <= sys.version_info[:2] <= (3, 13), "Python 3.10 to 3.13 needed"'
	"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); \
		echo "make: cannot create $(VENV); on Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(train_stamp): $(pins) | $(bin)/python
	$(bin)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[train]'
	@if $(bin)/python -c 'import sys; sys.exit(sys.version_info < (3, 13))'; then \
		$(bin)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt --no-deps dm-control; fi
	@touch $@

$(dev_stamp): $(pins) $(train_stamp)
	$(bin)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[train,dev]'
	@touch $@
