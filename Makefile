# The commands of this project; `make help` lists them. Everything is installed into .venv, nothing elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Without mosquitto the demo runs on the embedded broker, an extra.
EXTRAS = $(shell PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null && echo images || echo images,broker)

.PHONY: help setup dev demo test check format bench clean

help:                ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | column -t -s:

setup: $(VENV)/.installed  ## install what running needs
dev: $(VENV)/.installed-dev  ## install what tests and checks need

$(VENV)/bin/pip:
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "make: Python's venv module is needed: apt install python3-venv" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.installed

demo: setup          ## three agents, an orchestrator and a broker answer 1,000 images
	$(BIN)/distree demo $(ARGS)

test: dev            ## run the tests
	$(BIN)/python -m pytest $(ARGS)

check: dev           ## lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: dev          ## format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: dev           ## the hop against the bare loop, and the criteria (some minutes, on an idle machine)
	$(BIN)/python -m benchmarks.criteria
	$(BIN)/python -m benchmarks.hop

clean:               ## remove what was installed and cached
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
