# Two commands matter: `make demo` and `make test`. Both do all set-up themselves and may be repeated.
SHELL := /bin/bash
# The newest supported Python that runs here; a version manager may list ones that do not.
PYTHON ?= $(shell for v in 3.13 3.12 3.11; do python$$v -c '' 2>/dev/null && { echo python$$v; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= dev,bench,labelstudio,ray,export
DEMO_IMAGES ?= 1000
DEMO_BUDGET ?= 100
# One more than there are cores: a third of the time is waiting for servers.
WORKERS ?= 3
KERNELS := $(addprefix tests/curate/,masks/test_shapes.py masks/test_rle.py greedy/test_kcenter.py greedy/test_neighbours.py formats/test_nothing_lost.py) tests/labeling/test_brush.py
MINUTES ?= 10
SEED ?= 0
MARKS := not exhaustive
STAMP := $(VENV)/.installed-$(EXTRAS)

export NO_ALBUMENTATIONS_UPDATE := 1
export FIFTYONE_DO_NOT_TRACK := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Compiled modules are kept: tests start hundreds of commands, each of which would compile everything anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test test-all quick constraints lint bench kill figures trial proof proof-full anomaly clean test-bounds fuzz
.DEFAULT_GOAL := help

help: ## Show what can be made.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make .venv and install everything (some minutes, some GB the first time).

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" -o -x $(BIN)/python || { echo "Python 3.11, 3.12 or 3.13 is needed, and none runs here" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes the first time"
	@$(BIN)/pip install -qq -c constraints.txt -e '.[$(EXTRAS)]'
	@$(BIN)/python -m curate.mongod --install
	@rm -f $(VENV)/.installed-* && touch $@

demo: setup ## Draw a demo plant, index it, choose what to label first, and say what to do next.
	@$(BIN)/curate demo --images $(DEMO_IMAGES)
	@$(BIN)/curate index --project demo
	@$(BIN)/curate embed --project demo
	@$(BIN)/curate select --budget $(DEMO_BUDGET) --project demo
	@$(BIN)/curate status --project demo

# The workers share the cores already.
test quick: export OMP_NUM_THREADS := 1

test: setup ## Run the tests; each of the WORKERS has a database and a Label Studio of its own. Keeps durations in out/tests.xml.
	@mkdir -p out
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 30 --junitxml out/tests.xml -m "$(MARKS)"

test-all: MARKS :=
test-all: test ## The same with the exhaustive ones: every place of a kill, every screen, long fits, Ray.

kill: setup ## Kill -9 at every write and at random moments of every command; MINUTES, and ONLY=index,select for some.
	@$(BIN)/python -m tests.kill.run --minutes $(MINUTES) $(if $(ONLY),--only $(ONLY))

test-bounds: setup ## Run the tests of the numba kernels with their bounds checked (compiled anew the first time).
	@NUMBA_BOUNDSCHECK=1 $(BIN)/python -m pytest $(KERNELS)

quick: setup ## Run the tests that need no database, server, browser or training.
	@$(BIN)/python -m pytest -n 2 -m "not mongo and not studio and not browser and not train and not slow and not exhaustive"

constraints: setup ## Pin the versions that are installed, after `make test` has passed with them.
	@{ echo "# Made by 'make constraints': the versions that were tested together."; $(BIN)/pip freeze --exclude-editable; } > constraints.txt

lint: setup ## Check style and types.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

fuzz: setup ## Read mutated inputs for MINUTES (10) from SEED (0) on, print the tally, keep what failed in out/fuzz.
	@$(BIN)/python -m tests.fuzz.run --minutes $(MINUTES) --seed-from $(SEED) --processes $(WORKERS)

bench: setup ## Measure speed: ratios against peers in the same run (installs the peers).
	@$(BIN)/pip install -qq -e '.[$(EXTRAS),peers]'
	@$(BIN)/python -m tests.bench.bench_start
	@$(BIN)/python -m tests.bench.bench_rle
	@$(BIN)/python -m tests.bench.bench_index
	@$(BIN)/python -m tests.bench.bench_embed
	@$(BIN)/python -m tests.bench.bench_dense
	@$(BIN)/python -m tests.bench.bench_kcenter --million
	@$(BIN)/python -m tests.bench.bench_coverage
	@$(BIN)/python -m tests.bench.bench_select
	@$(BIN)/python -m tests.bench.bench_brush
	@$(BIN)/python -m tests.bench.bench_labelstudio
	@$(BIN)/python -m tests.bench.bench_backend
	@$(BIN)/python -m tests.bench.bench_export
	@$(BIN)/python -m tests.bench.bench_synth
	@$(BIN)/python -m tests.bench.bench_loader

figures: setup ## Train recipes on real steel (../shared/data) and write tests/bench/figures/RESULTS.md; over an hour.
	@$(BIN)/python -m tests.bench.figures.run

trial: setup ## Do synthetic defects help on real tiles (../shared/data)? Writes tests/bench/trial/RESULTS.md; four hours of a core, resumable.
	@$(BIN)/python -m tests.bench.trial.run

PEERS := .venv-peers
NEEDED := tests/bench/proof/peers/requirements.txt

$(PEERS)/.installed: $(NEEDED)
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/pip install -qq -r $(NEEDED)
	@$(PEERS)/bin/pip install -qq --no-deps baal==2.1.0
	@touch $@

proof: setup $(PEERS)/.installed ## Play the written protocol (PROTOCOL=2: the second one, hours) against random and the peers; 35 minutes on two cores and 25 for vectors, resumable.
	@$(BIN)/python -m tests.bench.proof.run --protocol $(or $(PROTOCOL),1)

PEER := .peer-anomalib

$(PEER)/.installed: tests/bench/anomaly_peer.txt
	@$(BIN)/pip install -qq --no-deps --target $(PEER) -r $<
	@touch $@

anomaly: setup $(PEER)/.installed ## Compare the anomaly score with anomalib's PatchCore on real tiles (../shared/data); minutes.
	@$(BIN)/python -m tests.bench.bench_anomaly

proof-full: setup ## The same with trained networks (../shared/data): hours on two cores, for where there is a GPU.
	@$(BIN)/python -m tests.bench.proof.full

clean: ## Remove .venv and caches; never a project's work/.
	rm -rf $(VENV) .venv-peers $(PEER) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find curate labeling synth train tests -name __pycache__ -type d -prune -exec rm -rf {} +
