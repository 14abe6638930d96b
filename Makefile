# The two front doors are `make demo` and `make test`; both make their own environment in .venv first.

# The first Python >= 3.11 that really runs (a version manager's shim may be there and still refuse).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo "$$p" && break; done)
VENV := .venv
BIN := $(VENV)/bin
# A second demo does not touch what the first one made.
DEMO_OUT ?= $(shell n=1; d=demo-out; while [ -e "$$d" ]; do n=$$((n + 1)); d=demo-out-$$n; done; echo "$$d")

.PHONY: help setup demo test test-slow test-all check static audit lint format docs bench-batching bench-families bench-features bench-kill-resume bench-serving bench-streaming bench-utility chaos build clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.installed ## make .venv with everything (about 2 GB; a few minutes)

$(VENV)/.installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "augmint needs Python 3.11 or newer: install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: apt install python3-venv)." >&2; exit 1; }
	@echo "Installing augmint and what it needs into $(VENV) …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: setup ## the whole path on real data: train, export, serve, balance, compare (about 6 minutes on 2 cores)
	$(BIN)/augmint demo --out $(DEMO_OUT)

test: setup ## the whole test suite (under 5 minutes on 2 cores)
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-slow: setup ## the tests marked slow: every block of the README, run in its order
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

test-all: test test-slow ## both

check: static test ## lint, types, import arrows, and the tests with their doctests

static: setup ## lint, types and import arrows alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

audit: setup ## are all pins there, and is one known to be vulnerable? (needs the network; exit code 3: not looked up)
	@test -x .venv-audit/bin/pip-audit || { "$(PYTHON)" -m venv .venv-audit && .venv-audit/bin/python -m pip install --quiet pip-audit==2.10.1; } || echo "pip-audit cannot be installed." >&2
	$(BIN)/python deploy/audit.py .venv-audit/bin/pip-audit

format: setup ## put the code into its one format
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

docs: setup ## write docs/cli.md anew from the commands' own help
	$(BIN)/python -m augmint.cli.reference

bench-batching: setup ## 32 concurrent single-image requests, batching on against off (needs wrk)
	$(BIN)/python benchmarks/batching.py

bench-serving: setup ## the service beside raw ONNX Runtime and its peers: docs/serving.md (about 20 minutes; needs wrk)
	$(BIN)/python benchmarks/serving.py --setup
	$(BIN)/python benchmarks/serving.py --docs

bench-utility: setup ## data sets x shots x methods, with intervals: docs/utility.md (about an hour on 2 cores)
	$(BIN)/python benchmarks/utility.py

bench-families: setup ## every family trained, measured, and its promise tested: docs/families.md (about 2 hours on 2 cores)
	$(BIN)/python benchmarks/families.py

bench-features: setup ## a linear SVM on a critic's features against pixels and an untrained network (about 15 minutes)
	$(BIN)/python benchmarks/features.py

bench-kill-resume: setup ## kill training ten times at random points; the weights must be the same
	$(BIN)/python benchmarks/kill_resume.py

bench-streaming: setup ## the server's peak memory for a stream of a million images against one of ten thousand (minutes)
	$(BIN)/python benchmarks/streaming.py

chaos: setup ## the service under fire: every address fuzzed, overload, kills, bad clients, clocks, memory, half an hour of soak: docs/chaos.md (about 45 minutes)
	$(BIN)/python benchmarks/chaos.py --docs

build: setup ## the wheel, in dist/
	$(BIN)/python -m build --wheel

clean: ## remove the environment and everything generated here
	rm -rf $(VENV) .venv-peers .venv-peers-triton dist build demo-out demo-out-* bench-utility-out bench-families-out .pytest_cache .mypy_cache .ruff_cache .hypothesis
