# The one door: the same commands for people and for CI.
#   make demo      install, start, and watch the flight delay line turn on real data
#   make up down status
#   make compose-up compose-demo compose-down   the same in containers (VOLUMES=1 removes the state too)
#   make cluster-up cluster-down   a kind cluster on this machine, connected: training runs in its pods
#   make cluster-connect cluster-disconnect   the same with the cluster of KUBECONFIG
#   make check     format, lint, types, layers, line specs, pins in step
#   make test      unit, policy, integration, end to end
#   make test-cluster test-thorough   in pods of the cluster of KUBECONFIG; what takes minutes more
#   make bench     ratios against baselines; make bench-loop-pays: a year's replay
#   make floor     rebuild the page of the factory floor (plugins/floor/dist), needs Node 20
#   make pins      recompile requirements*.txt from requirements*.in

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3.11
BIN := .venv/bin
export PYTHONPATH := include
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install install-dev demo up down status compose-up compose-demo compose-down cluster-up cluster-down cluster-connect cluster-disconnect check format test test-cluster test-thorough test-fast bench bench-loop-pays floor pins

help:
	@sed -n 's/^#   //p' Makefile

.venv/installed: requirements.txt scripts/install.sh
	@PYTHON="$(PYTHON)" scripts/install.sh requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	@PYTHON="$(PYTHON)" scripts/install.sh requirements-dev.txt
	@touch $@

install: .venv/installed
install-dev: .venv/installed-dev

demo:
	@AIF_DEMO_STARTED="$$(date +%s)" $(MAKE) --no-print-directory .venv/installed demo-run

.PHONY: demo-run
demo-run:
	@$(BIN)/python -m plant demo

up: .venv/installed
	@$(BIN)/python -m plant up

down:
	@if [ -x $(BIN)/python ]; then $(BIN)/python -m plant down; else echo "Nothing is installed, so nothing runs."; fi

status: .venv/installed
	@$(BIN)/python -m plant status

compose-up:
	@scripts/compose.sh up

compose-demo:
	@AIF_DEMO_STARTED="$$(date +%s)" scripts/compose.sh demo

compose-down:
	@scripts/compose.sh down "$(VOLUMES)"

cluster-up: .venv/installed
	@scripts/cluster.sh up

cluster-down:
	@scripts/cluster.sh down

cluster-connect: .venv/installed
	@$(BIN)/python -m plant connect $(ARGS)

cluster-disconnect: .venv/installed
	@$(BIN)/python -m plant disconnect

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m aifactory.line
	scripts/pins.sh --check

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: .venv/installed-dev
	$(BIN)/python -m pytest

test-fast: .venv/installed-dev
	$(BIN)/python -m pytest -m "not integration and not e2e and not containers and not kubernetes and not thorough"

test-cluster: .venv/installed-dev
	$(BIN)/python -m pytest -m "kubernetes and not thorough"

test-thorough: .venv/installed-dev
	$(BIN)/python -m pytest -m thorough

bench: .venv/installed-dev
	$(BIN)/python -m bench

bench-loop-pays: .venv/installed-dev
	$(BIN)/python -m bench.loop_pays

floor: .venv/installed
	$(BIN)/python scripts/floor.py schema
	cd plugins/floor && npm ci --no-audit --no-fund && npm run types && npm test && npm run build
	$(BIN)/python scripts/floor.py record

pins: .venv/installed
	scripts/pins.sh
