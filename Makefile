# The commands of this project; `make help` lists them. Everything is installed into .venv, nothing elsewhere.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Without mosquitto the demo runs on the embedded broker, an extra.
EXTRAS = $(shell PATH="$$PATH:/usr/sbin:/usr/local/sbin" command -v mosquitto >/dev/null && echo images || echo images,broker)

.PHONY: help setup dev demo test test-slow test-embedded test-thorough check size format api bench fuzz peers brokers scale footprint routing chaos access odd-files arm endurance dashboard-soak tuner-report zoo zoo-check zoo-report test-tools extras docs reference surface first-result node audit bom clean

help:                ## list these commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | column -t -s:

setup: $(VENV)/.installed  ## install what is needed to run DistrEE
dev: $(VENV)/.installed-dev  ## install what tests and checks need, too

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

demo: setup          ## start a broker, an orchestrator and three agents, which answer 1,000 images
	$(BIN)/distree demo $(ARGS)

test: dev            ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile -m "not slow" $(ARGS)

test-slow: dev       ## run the tests that `make test` leaves out: pages that train exit heads
	$(BIN)/python -m pytest -n auto --dist loadfile -m slow $(ARGS)

test-thorough: dev   ## run the tests, with all examples of each property (some minutes more)
	$(BIN)/python -m pytest -n auto --dist loadfile --hypothesis-profile=thorough $(ARGS)

test-embedded: dev   ## run the tests of what any broker must do on the embedded one
	DISTREE_MOSQUITTO= $(BIN)/python -m pytest -n auto --dist loadfile -m any_broker $(ARGS)

check: dev           ## lint and type-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

extras: dev          ## see whether the package and all its extras can be installed together (seconds; fetches metadata)
	$(BIN)/python -m tools.extras

size: dev            ## list the largest files and classes, and count the lines of source
	$(BIN)/python -m tools.size $(ARGS)

format: dev          ## format the code and fix what ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

api: setup           ## write docs/asyncapi.yaml, docs/schemas and the dashboard's declarations from the code
	$(BIN)/python -m tools.asyncapi docs
	$(BIN)/python -m tools.dashboard_messages

bench: dev           ## measure a hop against the bare loop and by TLS, the criteria and the front ends (minutes, on an idle machine)
	$(BIN)/python -m benchmarks.criteria
	$(BIN)/python -m benchmarks.frontends
	$(BIN)/python -m benchmarks.hop
	$(BIN)/python -m benchmarks.hop --secured

fuzz: dev           ## 2,000,000 damaged messages and 200,000 files at everything that reads any (a quarter of an hour; ARGS="--seed 2 --target yaml")
	$(BIN)/python -m benchmarks.fuzz $(ARGS)

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench,$(EXTRAS)]'
	@touch $@ $(VENV)/.installed

peers: $(VENV)/.installed-bench  ## measure a hop against gRPC, HTTP and ZeroMQ, and what each byte is for (a minute, on an idle machine)
	$(BIN)/python -m benchmarks.peers $(ARGS)

scale: dev           ## measure 10,000 simulated boards, and an orchestrator with 1,000 real ones (some minutes, on an idle machine)
	$(BIN)/python -m benchmarks.scale --out docs/results $(ARGS)

chaos: dev           ## play faults on real sites and account for every input (as root; half an hour; ARGS="kill:* plans:*")
	$(BIN)/python -m benchmarks.chaos --out docs/results $(ARGS)

brokers: dev         ## test what other brokers can do, and run two sites on each (ten minutes; apt install them; ARGS="NATS")
	$(BIN)/python -m benchmarks.brokers --install --out docs $(ARGS)

routing: dev         ## measure sites whose boards stop, hang, are slow or lose their broker (ten minutes; ARGS="uneven --checkout old=DIR")
	$(BIN)/python -m benchmarks.routing $(ARGS)

endurance: dev       ## an hour at 50 inputs per second: memory of every process, bytes written (ARGS="--minutes 10")
	$(BIN)/python -m benchmarks.endurance $(ARGS)

dashboard-soak: dev  ## run the dashboard in Chromium under 50 results per second for a minute
	$(BIN)/python -m benchmarks.dashboard --soak 60 $(ARGS)

footprint: dev       ## measure disk, memory, time to start and wake-ups of an agent (a minute, on an idle machine)
	$(BIN)/python -m benchmarks.footprint --out docs/results $(ARGS)

access: dev          ## try on mosquitto what every user may do with every topic (a minute)
	$(BIN)/python -m benchmarks.access $(ARGS)

odd-files: dev       ## hand 164 odd files to origins in four ways, and write what comes of each (a minute)
	$(BIN)/python -m benchmarks.odd_files --out docs/results/odd-files.md $(ARGS)

arm: dev             ## run agents in Debian's armhf userland under qemu-user (as root; minutes)
	$(BIN)/python -m benchmarks.arm --on fashion=model_zoo/samples/fashion.npz --out docs/results $(ARGS)

tuner-report: dev    ## measure the tuners for docs/results (FASHION=folder CIFAR=cifar10_jpeg.npz WORK=folder; ten minutes)
	$(BIN)/python -m benchmarks.tuner --on fashion=$(FASHION) --on cifar10-wide=$(CIFAR) --work $(WORK) --out docs/results $(ARGS)

node: node_modules/.installed  ## install what tests of the Node-RED flow and of docs/asyncapi.yaml need

node_modules/.installed: Makefile
	npm install --no-save --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error \
	  node-red@4.1 @asyncapi/parser@3.6
	@touch $@

zoo: $(VENV)/.installed-zoo  ## install what training and exporting need

zoo-check: zoo       ## train, export and report on tiny networks (some minutes)
	$(BIN)/python -c 'import torch, litert_torch, ai_edge_quantizer'
	$(BIN)/python -m pytest tests/model_zoo/test_zoo_layers.py tests/model_zoo/test_zoo_wide_build.py tests/model_zoo/test_zoo_build.py tests/model_zoo/test_zoo_whole.py $(ARGS)

# Keras exports by its PyTorch backend, which the extra has brought.
$(VENV)/.installed-tools: $(VENV)/.installed-zoo
	$(BIN)/pip install --quiet --disable-pip-version-check 'keras>=3.15,<4'
	@touch $@

test-tools: $(VENV)/.installed-tools  ## do the how-tos for networks of PyTorch and Keras, with these (some minutes)
	$(BIN)/python -m pytest tests/docs/test_pages.py -k from- $(ARGS)

zoo-report: zoo      ## evaluate trained networks for docs/results (DATA=cifar10_jpeg.npz WORK=folder)
	$(BIN)/distree zoo report cifar10-wide --data $(DATA) --work $(WORK) $(ARGS)

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/pip
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@ $(VENV)/.installed

docs: $(VENV)/.installed-docs  ## build the documentation into site/
	$(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html, or: cd site && python3 -m http.server"

surface: dev         ## write tests/structure/public_surface.txt from the code: what users rely on
	$(BIN)/python -m tools.surface

reference: dev       ## write docs/reference from the code
	$(BIN)/python -m tools.reference
	$(BIN)/python tests/integration/provoked.py

# The tools that look at what is installed have an environment of their own, so that they are not in what they see.
.venv-audit/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7,<8' 'pip-audit>=2.10,<3' 'uv>=0.5'
	@touch $@

audit: .venv-audit/.installed  ## look up known vulnerabilities of what an installation brings along (needs pypi.org; a minute)
	.venv-audit/bin/python -m tools.dependencies audit $(ARGS)

bom: .venv-audit/.installed  ## write bills of materials of the base and of each extra, with licences, into bom/
	.venv-audit/bin/python -m tools.dependencies bom $(ARGS)

first-result: dev    ## time the way from an empty virtual environment to the first result
	$(BIN)/python -m benchmarks.first_result $(ARGS)

clean:               ## remove what was installed and cached
	rm -rf $(VENV) .venv-audit node_modules site bom .mypy_cache .ruff_cache .pytest_cache .hypothesis
