# AFPKD Edge: a trained teacher in, a small student on an edge device out, with proof. `make help` lists everything.
RECIPE       ?= default
RECIPES      ?=
DEVICE       ?= local
PRECISION    ?= fp16
TRAIN_DEVICE ?= auto
TRAIN_PROCESSES ?= 1
RUNS         ?= runs
TENSORBOARD  ?=
DIST         ?= dist
CLUSTER      ?=
JOBS         ?= $(shell nproc)
ARGS         ?=
PYTHON       ?= python3

.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV  := .venv
AFPKD := $(VENV)/bin/afpkd
SETUP := $(VENV)/.afpkd-setup
STAGES := distill export profile report
EXTRAS := train timm rtx dev
COVERED := --cov=afpkd --cov=export --cov=deploy --cov-report=term:skip-covered
LOCKED := --quiet --universal --python-version 3.11 --generate-hashes --no-strip-extras --no-annotate --no-emit-index-url \
  --custom-compile-command 'make lock'

##@ The main job: `make distill export profile`
setup: $(SETUP) ## create .venv with every package pinned

setup-cluster: $(SETUP) ## add what CLUSTER=slurm|kubernetes needs (each start of a graph is slower with it)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-cluster.lock

# Several goals on one command line are one call: stages then run side by side where they can.
GOALS := $(filter $(STAGES),$(MAKECMDGOALS))
GRAPH  = $(if $(RECIPES),$(RECIPES:%=--recipe '%'),--recipe '$(RECIPE)') $(if $(CLUSTER),--cluster '$(CLUSTER)') \
         --device '$(DEVICE)' --train-device '$(TRAIN_DEVICE)' --train-processes '$(TRAIN_PROCESSES)' --runs '$(RUNS)' \
         $(if $(TENSORBOARD),--tensorboard)
NO_RECIPES = [ -z '$(RECIPES)' ] || { echo "error: $(1) [E_USAGE]" >&2; exit 2; }
.PHONY: run-goals
run-goals: $(SETUP)
	$(if $(filter command,$(origin RECIPE)),@$(call NO_RECIPES,RECIPE and RECIPES: give one of them))
	@$(AFPKD) run $(GOALS) $(GRAPH) $(ARGS)

distill: run-goals ## train the teacher, its prompts, the student, and the undistilled control
export: run-goals ## write one ONNX bundle per network, checked against torch
profile: run-goals ## measure latency, memory and accuracy of each exported file; write the report
report: run-goals ## write report.html, .md, .csv, .json, .png, .svg, .cdx.json of a recipe

$(STAGES):
	@:

deploy: $(SETUP) ## put the student on DEVICE as its current release, built and checked there (PRECISION=fp16)
	@$(call NO_RECIPES,a release is of one recipe: name it with RECIPE=, not RECIPES=)
	@[ '$(DEVICE)' != local ] || { echo "error: a release is for another machine: name one of devices.toml, DEVICE=orin1 [E_LOCAL]" >&2; exit 2; }
	@$(AFPKD) run export $(GRAPH)
	@$(AFPKD) deploy --recipe '$(RECIPE)' --device '$(DEVICE)' --precision '$(PRECISION)' --runs '$(RUNS)' $(ARGS)

##@ For developers
check: $(SETUP) ## ruff, mypy, import-linter, documentation tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pytest -q tests/test_docs.py tests/test_numbers.py tests/test_rules.py
	@echo "next: make test"

test: $(SETUP) ## every test, on JOBS cores: fast ones first, then the slow ones (ARGS='-m "not slow"' leaves those out)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(VENV)/bin/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder $(COVERED) $(ARGS)
	@echo "next: make distill export profile"

bench: $(SETUP) ## list our own claims, or make one again (ARGS=NAME; hours; see bench/README.md)
	$(VENV)/bin/python -m bench $(ARGS)

bench-accuracy: $(SETUP) ## AFPKD, its rivals and controls on CIFAR-100: the table (ARGS=--run trains missing rows: hours)
	$(VENV)/bin/python -m bench.accuracy $(ARGS)

bench-speed: $(SETUP) ## training speed against torchdistill (minutes; run nothing beside it)
	$(VENV)/bin/python -m bench.speed $(ARGS)

gpu-check: $(SETUP) ## on a machine with an NVIDIA GPU: mixed precision, compile, one epoch, TensorRT engines
	$(VENV)/bin/python -m bench.gpu_check $(ARGS)

dist: ## write the source archive of the last commit to DIST (dist): the same commit gives the same bytes
	@git rev-parse -q --verify HEAD > /dev/null 2>&1 \
	  || { echo "error: an archive is made of a commit, and this folder is no git checkout: clone the repository [E_NO_GIT]" >&2; exit 2; }
	@mkdir -p '$(DIST)'
	@version=$$(git show HEAD:pyproject.toml | sed -n 's/^version = "\(.*\)"$$/\1/p') && name="afpkd-edge-$$version" \
	  && git -c tar.umask=0022 -c core.autocrlf=false archive --prefix="$$name/" --output='$(DIST)'/"$$name.tar" HEAD \
	  && cd '$(DIST)' && gzip -9nf "$$name.tar" && sha256sum "$$name.tar.gz"

lock: ## write requirements.lock anew from pyproject.toml (ARGS=--upgrade: with new versions of everything)
	rm -rf .venv-tool && $(PYTHON) -m venv .venv-tool && .venv-tool/bin/pip install -q 'uv==0.13.*'
	.venv-tool/bin/uv pip compile $(LOCKED) $(EXTRAS:%=--extra %) $(ARGS) pyproject.toml --output-file requirements.lock
	$(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["cluster"], sep="\n")' \
	  | .venv-tool/bin/uv pip compile $(LOCKED) --constraint requirements.lock $(ARGS) - --output-file requirements-cluster.lock
	rm -rf .venv-tool

audit: ## known vulnerabilities of every locked package (asks PyPI's advisory data base)
	rm -rf .venv-tool && $(PYTHON) -m venv .venv-tool && .venv-tool/bin/pip install -q 'pip-audit==2.*'
	.venv-tool/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock
	.venv-tool/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements-cluster.lock
	rm -rf .venv-tool

clean: ## remove the environment and caches; runs stay
	rm -rf $(VENV) .venv-tool .pytest_cache .mypy_cache .ruff_cache .import_linter_cache *.egg-info build
	@echo "next: make setup"

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Variables: RECIPE=$(RECIPE) (name or path), RECIPES='a b' (several), DEVICE=$(DEVICE),"
	@echo "  TRAIN_DEVICE=$(TRAIN_DEVICE) (auto|cpu|cuda), TRAIN_PROCESSES=$(TRAIN_PROCESSES), RUNS=$(RUNS),"
	@echo "  CLUSTER=$(CLUSTER) (slurm|kubernetes|folder), TENSORBOARD=1, ARGS"

$(SETUP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "error: $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo 'not there'): Python 3.11 or newer is needed; name one with PYTHON=python3.12 [E_PYTHON]" >&2; exit 2; }
	@echo "setting up $(VENV) (several GB of packages, minutes)"
	@{ $(PYTHON) -m venv $(VENV) \
	  && $(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock \
	  && $(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . ; } \
	  || { echo "error: $(VENV) is not complete, for the reason above: no network, no room (several GB), or no python3-venv; mend it and give the same command again [E_SETUP]" >&2; exit 2; }
	@touch $@
	@echo "ready; next: make distill export profile"

.PHONY: setup setup-cluster $(STAGES) deploy check test bench bench-accuracy bench-speed gpu-check dist lock audit clean help
