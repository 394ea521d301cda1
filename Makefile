# Two commands for a stranger: `make run` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
DEMO := data/demo
# A file's tests one after the other, since they share what took long to make. Two files at a time, for many tests start
# servers and ranks of their own; the fast ones as many at a time as there are cores.
TESTS := $(BIN)/python -m pytest --dist loadfile

TRIALS ?= 100
SEED ?= $(shell date +%Y%m%d)

.PHONY: help setup run test test-all chaos lint check docs reference format clean

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: setup $(DEMO)/reviews.jsonl  ## set up, then the whole pipeline on a synthetic category, offline, on the CPU
	$(BIN)/nextquill run --config configs/demo.yaml

test: setup  ## set up, then all tests but those that take many minutes
	$(TESTS) -n 2 --durations=20 -m "not slow"

test-all: setup  ## the whole test suite, half an hour on two cores
	$(TESTS) -n 2

chaos: setup  ## kill, cut off, damage and fill up: TRIALS=100 trials of each kind from SEED=today; hours
	CHAOS_TRIALS=$(TRIALS) CHAOS_SEED=$(SEED) $(BIN)/python -m pytest -q tests/chaos --timeout 0

lint: setup  ## formatting, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint  ## lint and the fast tests
	$(TESTS) -n logical -q -m "not slow and not flow and not ranks and not process and not slurm"

docs: setup  ## the documentation site, in site/
	$(BIN)/mkdocs build --strict

reference: setup  ## write the pages of docs/reference that follow from the code
	$(BIN)/python -m scripts.write_reference

format:  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: .venv/ready wordnet  ## .venv from the lock of exact versions

# torch first and by pip alone: whatever pulls it in later would bring several GB of another build. The lock is
# complete, so the rest needs no resolver; DeepSpeed is built without its CUDA extensions.
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo "nextquill needs Python 3.11 or 3.12, $(PYTHON) is another; call make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || ./scripts/system-package python3-venv
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q $$(grep -E '^(setuptools|wheel|packaging|torch)==' requirements.lock)
	DS_BUILD_OPS=0 $(BIN)/pip install -q --no-deps --no-build-isolation -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# METEOR needs WordNet 3.0; Debian packages exactly its files.
.PHONY: wordnet
wordnet:
	@test -e /usr/share/wordnet/index.sense -o -e /usr/share/wordnet/sense.index \
	  || ./scripts/system-package wordnet-base wordnet-sense-index

$(DEMO)/reviews.jsonl: | setup
	$(BIN)/nextquill sample $(DEMO)

clean:  ## remove the demo's data and artifacts; the environment stays
	rm -rf artifacts data
