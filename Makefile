# The commands of this project; `make help` lists them. Everything is installed into .venv, nothing elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Without mosquitto the demo runs on the embedded broker, an extra.
EXTRAS = $(shell PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null && echo images || echo images,broker)

.PHONY: help setup dev demo test test-embedded check size format api bench fuzz fuzz-data peers brokers scale footprint routing arm dashboard-soak tuner-report zoo zoo-check zoo-report docs reference first-result node clean

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

# torch first and by itself: any other way pulls gigabytes.
$(VENV)/.installed-zoo: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev,zoo]'
	@touch $@ $(VENV)/.installed-dev $(VENV)/.installed

demo: setup          ## three agents, an orchestrator and a broker answer 1,000 images
	$(BIN)/distree demo $(ARGS)

BROKER_TESTS = $(addprefix tests/,broker_config device_agent distree/client distree/transport docs integration orchestrator)

test: dev            ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-embedded: dev   ## run the tests that touch brokers as where mosquitto is not installed
	DISTREE_MOSQUITTO= $(BIN)/python -m pytest -n auto --dist loadfile $(BROKER_TESTS) $(ARGS)

check: dev           ## lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

size: dev            ## the largest files and classes, and the lines of source
	$(BIN)/python -m tools.size $(ARGS)

format: dev          ## format the code and mend what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

api: setup           ## write anew what describes messages: docs/asyncapi.yaml, docs/schemas, and for the dashboard
	$(BIN)/python -m tools.asyncapi docs
	$(BIN)/python -m tools.dashboard_messages

bench: dev           ## the hop against the bare loop, criteria and front ends (some minutes, on an idle machine)
	$(BIN)/python -m benchmarks.criteria
	$(BIN)/python -m benchmarks.frontends
	$(BIN)/python -m benchmarks.hop

fuzz: dev           ## a million spoiled messages at all decoders (two minutes; ARGS="--seed 2")
	$(BIN)/python -m benchmarks.fuzz $(ARGS)

fuzz-data: dev      ## 100,000 damaged data files at the reader of data (ten minutes; ARGS="--seed 2")
	$(BIN)/python -m benchmarks.fuzz_data $(ARGS)

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench,$(EXTRAS)]'
	@touch $@ $(VENV)/.installed

peers: $(VENV)/.installed-bench  ## the hop against gRPC, HTTP and ZeroMQ, and where each byte goes (a minute, on an idle machine)
	$(BIN)/python -m benchmarks.peers $(ARGS)

scale: dev           ## 10,000 simulated boards, and an orchestrator of 1,000 real ones (some minutes, on an idle machine)
	$(BIN)/python -m benchmarks.scale --out docs/results $(ARGS)

soak: dev            ## faults against real agents, a real mosquitto and real links (half an hour; ARGS="outages burst")
	$(BIN)/python -m benchmarks.soak $(ARGS)

brokers: dev         ## what other brokers can do, and a chain and a wide site on each (ten minutes; apt install them; ARGS="NATS")
	$(BIN)/python -m benchmarks.brokers --install --out docs $(ARGS)

routing: dev         ## boards that go, hang, are slow, or lose their broker (ten minutes; ARGS="uneven --checkout old=DIR")
	$(BIN)/python -m benchmarks.routing $(ARGS)

dashboard-soak: dev  ## the dashboard in Chromium under 50 results a second for a minute
	$(BIN)/python -m benchmarks.dashboard --soak 60 $(ARGS)

footprint: dev       ## disk, memory, time to start and wake-ups of an agent (a minute, on an idle machine)
	$(BIN)/python -m benchmarks.footprint --out docs/results $(ARGS)

arm: dev             ## agents on Debian's armhf userland under qemu-user answer the samples (as root; minutes)
	$(BIN)/python -m benchmarks.arm --on fashion=model_zoo/samples/fashion.npz --out docs/results $(ARGS)

tuner-report: dev    ## docs/results of the tuners (FASHION=folder CIFAR=cifar10_jpeg.npz WORK=folder; ten minutes)
	$(BIN)/python -m benchmarks.tuner --on fashion=$(FASHION) --on cifar10-wide=$(CIFAR) --work $(WORK) --out docs/results $(ARGS)

node: node_modules/.installed  ## install what tests of the Node-RED flow and of docs/asyncapi.yaml need

node_modules/.installed: Makefile
	npm install --no-save --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error \
	  node-red@4.1 @asyncapi/parser@3.6
	@touch $@

zoo: $(VENV)/.installed-zoo  ## install what training and exporting need

zoo-check: zoo       ## train, export and report on tiny networks (some minutes)
	$(BIN)/python -c 'import torch, litert_torch, ai_edge_quantizer'
	$(BIN)/python -m pytest tests/model_zoo/test_zoo_layers.py tests/model_zoo/test_zoo_wide_build.py tests/model_zoo/test_zoo_build.py $(ARGS)

zoo-report: zoo      ## docs/results from trained networks (DATA=cifar10_jpeg.npz WORK=folder)
	$(BIN)/distree zoo report cifar10-wide --data $(DATA) --work $(WORK) $(ARGS)

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@ $(VENV)/.installed

docs: $(VENV)/.installed-docs  ## build the documentation into site/
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html, or: cd site && python3 -m http.server"

reference: dev       ## write docs/reference anew from the code
	$(BIN)/python -m tools.reference
	$(BIN)/python tests/integration/provoked.py

first-result: dev    ## from a bare virtual environment to the first result, timed
	$(BIN)/python -m benchmarks.first_result $(ARGS)

clean:               ## remove what was installed and cached
	rm -rf $(VENV) node_modules site .mypy_cache .ruff_cache .pytest_cache .hypothesis
