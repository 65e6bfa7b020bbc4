# Everything that one needs: Python 3.11 or newer, make, and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FLEET ?=
SEED ?= 42
ARGS ?=

.PHONY: help run test mutants unit check format lock bench bench-models demo-headroom clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || \
		{ echo "cachewarden needs Python 3.11 to 3.14, '$(PYTHON)' is $$($(PYTHON) --version 2>&1); say PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.5"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	@touch $(STAMP)

run: $(STAMP) ## the embedded fleet with load (or FLEET=fleet.yaml, your own servers), Ctrl-C ends it
	@$(BIN)/python -m cluster run --seed $(SEED) $(if $(FLEET),--fleet $(FLEET)) $(ARGS)

test: $(STAMP) ## everything that CI runs
	$(MAKE) --no-print-directory check
	$(BIN)/python -m pytest -n 2 tests/unit tests/scenarios tests/test_architecture.py tests/test_docs.py $(ARGS)
	$(BIN)/python -m pytest -n 2 -m "not slow" tests/simulation $(ARGS)
	# On real servers in real time a busy machine may upset one; it gets a second chance, which the summary shows.
	$(BIN)/python -m pytest -n 3 --dist loadfile --reruns 1 -m "not ray" tests/contract tests/integration $(ARGS)
	# Two deployments at once on two cores would wait for each other until something times out.
	$(BIN)/python -m pytest --reruns 1 -m ray tests/integration $(ARGS)

mutants: $(STAMP) ## 23 seeded bugs, each of which the simulation must find; minutes
	$(BIN)/python -m pytest -n 2 -m slow tests/simulation $(ARGS)

unit: $(STAMP) ## seconds, without Ray and without servers
	$(BIN)/python -m pytest -n 2 -m "not slow" tests/unit tests/scenarios $(ARGS)

check: $(STAMP) ## format, lint, types, dependency rule
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(STAMP) ## resolve pyproject.toml anew into requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra app --extra dev --universal --generate-hashes --no-emit-index-url --no-header \
		--quiet --output-file requirements.lock

bench: $(STAMP) ## decisions over HTTP beside a no-op: closed loop, and open at 50 to 1,000 a second
	$(BIN)/python -m benchmarks.decision_latency $(ARGS)

bench-models: $(STAMP) ## speed of the replay beside libCacheSim, and what the demo could gain at most
	$(BIN)/python -m benchmarks.replay_speed
	$(BIN)/python -m benchmarks.demo_headroom

clean: ## the virtual environment and everything that a run leaves in var/
	rm -rf $(VENV) var
