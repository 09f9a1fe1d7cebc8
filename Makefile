# What a person calls, and CI too. Every target does the set-up it needs; `make` alone lists them.
#   PYTHON=python3.12 make setup      another interpreter        EXTRAS=gpu,dev make setup      other extras

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: help setup models demo serve test lint fmt types arch dist bench-front bench-monitor clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## a virtual environment in .venv with the pinned packages (seconds when nothing changed)
	@.ci/setup

models: setup ## fetch the trained weights that the demo and some tests use
	@$(RUN) -m examples.fetch

demo: models ## export three models, serve them, ask them, keep serving (DEMO_EXIT=1 stops)
	@$(RUN) -m examples.demo

serve: models ## the demo's server without the questions
	@$(RUN) -m examples.demo --no-questions

test: lint types ## lint, types, import contracts and all tests
	$(RUN) -m pytest

lint: setup ## ruff: rules and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

fmt: setup ## rewrite the code as ruff has it
	$(RUN) -m ruff check --fix-only .
	$(RUN) -m ruff format .

types: setup ## mypy --strict
	$(RUN) -m mypy

arch: setup ## import contracts, sizes, names
	$(RUN) -m pytest tests/architecture

dist: setup ## wheel and source archive in dist/
	$(RUN) -m build --no-isolation

bench-front: setup ## the HTTP front against a raw ASGI app on the same server
	$(RUN) -m benchmarks.front

bench-monitor: setup ## how much of a core the monitor takes
	$(RUN) -m benchmarks.monitor

clean: ## remove what was built; the environment and the fetched weights stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
