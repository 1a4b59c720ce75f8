# Switchyard. `make help` lists the targets; every variable can be overridden: make collect EPISODES=100 SIZE=64
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
INSTALL = $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

PRESET ?= vision-472
EPISODES ?= 100000
SIZE ?= $(if $(filter %-64 demo,$(PRESET)),64,472)
WORKERS ?= $(shell nproc)
DATA ?= datasets/vision-$(SIZE)
SEED ?= 0
DEVICES ?= 1
NODES ?= 1
RUN ?= runs/$(PRESET)
TRAINED := models/trained/vision-64.ckpt
CHECKPOINT ?= $(TRAINED)
DEMO ?= demo
DEMO_EPISODES ?= 2400
DEMO_STEPS ?= 1500
DEMO_EVALUATIONS ?= 20
ARGS ?=
BENCHMARK ?= walker2d
RECIPE ?= published
ALGORITHM ?= cql
MINUTES ?= 9
comma := ,

.PHONY: help setup demo test lint bench bench-world bench-data bench-vision bench-lowdim bench-gpu torture collect train-vision collect-state train-state campaign eval clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## */  make \1\t/' | expand -t 24
	@echo "  sizes and places: EPISODES SIZE WORKERS DATA SEED PRESET DEVICES NODES RUN CHECKPOINT ARGS (see the top of the Makefile)"

setup: $(READY)  ## make .venv with the tested versions
$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (a few minutes, 6 GB: the torch wheel)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)) and "Python 3.11 or 3.12 is needed: make PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)
	@if $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 12))' && ! $(PY) -c 'import sim.bullet' 2>/dev/null; then \
	    echo "building PyBullet, which has no wheel for Python 3.12: ten minutes of one core, needs a C++ compiler"; \
	    $(INSTALL) numpy setuptools wheel && \
	    $(INSTALL) --force-reinstall --no-deps --no-cache-dir --no-build-isolation pybullet; fi
	@$(INSTALL) -e '.[dev]'
	@touch $(READY)

demo: $(READY)  ## collect, share, train, evaluate and report, at most 15 minutes on two cores
	@$(PY) -m data collect --out datasets/$(DEMO) --episodes $(DEMO_EPISODES) --size 64 --workers $(WORKERS) \
	    --policy scripted --noise 1.2 --randomise start
	@$(PY) -m train --preset demo --data datasets/$(DEMO) --out runs/$(DEMO) --steps $(DEMO_STEPS)
	@$(PY) -m eval --checkpoint runs/$(DEMO)/last.ckpt --data datasets/$(DEMO) --episodes $(DEMO_EVALUATIONS) \
	    --workers $(WORKERS) --reuse true

test: $(READY)  ## run the tests, in two processes (ARGS='-n 0': one)
	@$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

lint: $(READY)  ## ruff, mypy, import-linter
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

bench: $(READY)  ## speed beside peers and ceilings: a table and bench/results/bench.json
	@$(PY) -m bench $(ARGS)

bench-world: $(READY)  ## benchmarks of the world: speed, success of scripted policies, renderers, stability (40 minutes)
	@$(PY) -m bench --only world,tasks,renderers,stability $(ARGS)

bench-data: $(READY)  ## the data's figures: loading, memory, opening, collecting
	@$(PY) -m bench --only data,collecting $(ARGS)

bench-vision: $(READY)  ## the learner's figures: training steps beside their floor, acting, memory
	@$(PY) -m bench --only vision $(ARGS)

bench-lowdim: $(READY)  ## CQL on states: updates a second beside d3rlpy's, what routing costs
	@$(PY) -m bench --only lowdim $(ARGS)

bench-gpu: $(READY)  ## the learners on a GPU, a table in a few minutes; on a bare machine: python -m bench --only gpu
	@$(PY) -m bench --only gpu $(ARGS)

torture: $(READY)  ## kills, damage and full disks against collection and reading (half an hour)
	@$(PY) -m bench.torture $(ARGS)

collect: $(READY)  ## collect EPISODES at SIZE px with WORKERS processes into DATA
	@$(PY) -m data collect --out $(DATA) --episodes $(EPISODES) --size $(SIZE) --workers $(WORKERS) --seed $(SEED) $(ARGS)

collect-state: $(READY)  ## a dataset of BENCHMARK by RECIPE (published, quick, ...), after the trainings it needs
	@trainings=$$($(PY) -m data collect-state --benchmark $(BENCHMARK) --recipe $(RECIPE) $(ARGS) --print-missing || exit 2) || exit 2; \
	    while read -r training; do [ -z "$$training" ] || $(PY) -m $$training || exit 1; done <<< "$$trainings"
	@$(PY) -m data collect-state --benchmark $(BENCHMARK) --recipe $(RECIPE) $(ARGS)

train-state: $(READY)  ## ALGORITHM on that dataset: cql by five sharing rules, three seeds each, side by side; brac, td3-bc, iql, bc
	@$(PY) -m train $(ALGORITHM) --data datasets/$(BENCHMARK)-$(RECIPE).h5 --out runs/$(BENCHMARK)-$(RECIPE)-$(ALGORITHM) \
	    $(if $(filter cql,$(ALGORITHM)),--rules none$(comma)all$(comma)cds-basic$(comma)hipi$(comma)cds --seeds 0$(comma)1$(comma)2) $(ARGS)

train-vision: $(READY)  ## train PRESET (demo, vision-64, vision-472) on DATA with DEVICES x NODES
	@$(PY) -m train --preset $(PRESET) --data $(DATA) --out $(RUN) --seed $(SEED) --devices $(DEVICES) --nodes $(NODES) $(ARGS)

campaign: $(READY)  ## all trainings of FILE (TOML) within MINUTES on this machine; python -m eval.campaign plays them
	@$(PY) -m train campaign $(FILE) --minutes $(MINUTES) $(ARGS)

eval: $(READY)  ## success of CHECKPOINT with seen and with unseen looks, and a report; without one, of the policy that comes along
	@$(PY) -m eval --checkpoint $(CHECKPOINT) $(if $(filter-out file,$(origin DATA)),--data $(DATA)) --workers $(WORKERS) --split both $(ARGS)

clean:  ## remove caches (never datasets, runs or .venv)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
