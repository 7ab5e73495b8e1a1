# make demo · make test · make env · make bench · make docs: each makes the environment it needs, once.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test env bench docs lint clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

.venv/.python:
	@test -n "$(PYTHON)" || { echo "Tilth needs Python 3.11 or later on the PATH."; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@touch $@

.venv/.installed: .venv/.python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[serve]' --constraint constraints.txt
	@touch $@

.venv/.test: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]' --constraint constraints.txt
	@touch $@

.venv/.bench: .venv/.test
	$(BIN)/python -m pip install --quiet --editable '.[bench]' --constraint constraints.txt
	@touch $@

.venv/.docs: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]' --constraint constraints.txt
	@touch $@

env: .venv/.test

demo: .venv/.installed
	$(BIN)/tilth demo

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Chromium, where the package manager can bring it: the report's tests look at it as a person would.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium chromium-driver >/dev/null; } || echo "No Chromium: tests in a browser are skipped."

test: lint browser
	$(BIN)/pytest

bench: .venv/.bench
	for module in ingest_memory pretrain_memory minhash state_space augmentation mae_pretraining lm_pretraining npo_step interruptions guard_overhead unlearning_steps audit; do $(BIN)/python -m benchmarks.$$module || exit 1; done

docs: .venv/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv build dist site .mypy_cache .ruff_cache .pytest_cache
