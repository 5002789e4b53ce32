# One command for each thing a reader may want; `make help` lists them.
# `make book PRESET=smoke DATA=folder PYTHON=python3.11` changes the defaults below.

PRESET ?= cpu
DATA ?= world
PROFILE ?= local
STAGE ?= main
PROCESSES ?= 2
PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.installed
EXTRAS := .venv/.installed-extras
STRIP := $(BIN)/nbstripout --keep-id \
	--extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution"

.DEFAULT_GOAL := help
.PHONY: help book test lab lint bench soak study clean

help:  ## list these targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 10

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(EXTRAS): $(READY) requirements-extras.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-extras.lock
	@touch $@

book: $(READY)  ## run the chapters that are out of date and build the book (PRESET, DATA, PROFILE)
	@$(BIN)/python -m dalle3lib graph --preset "$(PRESET)" --data "$(DATA)" --profile "$(PROFILE)"

test: $(EXTRAS)  ## run the tests
	$(BIN)/python -m pytest -q --durations=20 -m "not soak"

lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

lint: $(READY)  ## check style, and that notebooks hold no outputs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(STRIP) --verify notebooks/*.ipynb

bench: $(READY)  ## measure the speed of rendering, captioning and training
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench.py

soak: $(EXTRAS)  ## run the long repeated tests
	$(BIN)/python -m pytest -q -m soak

study: $(READY)  ## run what is missing of the many-seed study (STAGE, PROCESSES)
	@$(BIN)/python -m dalle3lib study --stage "$(STAGE)" --processes "$(PROCESSES)"

clean:  ## delete all runs and built books (the environment stays)
	rm -rf runs book/_build
