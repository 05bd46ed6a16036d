# Two commands: `make repro` and `make test`. Both set up everything first, and again only when the pins have changed.
#
#   TORCH_INDEX_URL=https://download.pytorch.org/whl/cu126 make setup     another build of torch than the index offers;
#                                                                        remembered until TORCH_INDEX_URL= is said
#   make repro ARGS=train@r2          arguments for dvc repro            make test ARGS="-k rollout"      for pytest

VENV := .venv
BIN := $(VENV)/bin
PYTHON := $(or $(PYTHON),$(shell for p in python3.11 python3.12 python3.13; do $$p -c "" 2>/dev/null && echo $$p && break; done),python3)
TORCH_INDEX_URL ?= $(shell cat $(VENV)/torch-index-url 2>/dev/null)
PINS := $(shell { cat pyproject.toml constraints.txt; echo "$(TORCH_INDEX_URL)"; } | sha256sum | cut -c1-16)
READY := $(VENV)/ready-$(PINS)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# pip would compile on one core.
INSTALL := $(PIP) install --no-compile -c constraints.txt
# One more than cores, for tests wait for processes and servers; each takes 2 GB.
WORKERS := $(shell cores=$$(getconf _NPROCESSORS_ONLN) || cores=3; echo $$((cores < 3 ? cores + 1 : 4)))

export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup repro test check base smoke clean
.DEFAULT_GOAL := help

help:             ## this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1@/' | awk -F@ '{printf "make %-8s %s\n", $$1, $$2}'

setup: $(READY)   ## .venv with everything, pinned (about 3 minutes and 4 GB the first time)

repro: $(READY)   ## the loop: toy world, base, seed training, BAgger rounds, report; only what is not up to date
	@python -m flows.repro $(ARGS)

test: $(READY)    ## the tests, on all cores
	@python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(READY)   ## style, types, and who may import whom
	@ruff check .
	@mypy
	@lint-imports --no-cache

smoke: $(READY)   ## the whole loop, very small, in a temporary clone
	@python -m pytest tests/flows/test_pipeline.py $(ARGS)

base: $(READY)    ## trains the toy base pipeline from nothing into assets/toy-base (about an hour on two cores)
	@python -m model.base --out assets/toy-base

clean:            ## forgets work in progress and caches; results and .venv stay
	@rm -rf .work .prefect .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find flows store model tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

$(READY):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and f"Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is {sys.version.split()[0]}; say make PYTHON=...")'
	@echo "setting up $(VENV) (a few minutes the first time)" >&2
	@rm -f $(VENV)/ready-*
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	   $(PYTHON) -m venv --clear $(VENV); \
	 elif $(PYTHON) -c 'import pip, venv' 2>/dev/null; then \
	   $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	   $(PYTHON) -m pip --quiet --python $(BIN)/python install --ignore-installed pip; \
	 else echo "$(PYTHON) cannot make a virtual environment (no ensurepip, no pip): apt install python3-venv" >&2; exit 1; fi
	@$(INSTALL) --upgrade pip  # it resolves in a third of the time that Python's own takes
	@if [ -n "$(TORCH_INDEX_URL)" ]; then \
	   $(INSTALL) --no-deps --force-reinstall --index-url "$(TORCH_INDEX_URL)" torch; fi
	@PYTHONWARNINGS=ignore $(INSTALL) $(if $(TORCH_INDEX_URL),--extra-index-url "$(TORCH_INDEX_URL)") -e '.[browse,dev,s3]'
	@$(BIN)/python -m compileall -qq --workers 0 $(VENV)/lib || true  # files for other Pythons are among them
	@$(PIP) check
	@[ -e .git ] || $(BIN)/dvc config --local core.no_scm true
	@echo "$(TORCH_INDEX_URL)" > $(VENV)/torch-index-url
	@touch $@
