# Everything a developer types. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# Two processes, each with whole files of tests, so that what a file shares is made once.
PARALLEL := -n 2 --dist loadfile
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-gpu test-bench slow bench coverage docs lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP) ## create .venv with everything installed, at the versions of constraints.txt

# hatchling goes in beforehand and builds without isolation, so that the build tool is pinned like the rest.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || \
	{ echo "vaentropy needs Python 3.11, 3.12 or 3.13, but '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo 'not found'); run: make venv PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "'$(PYTHON)' has no venv module; install it (Debian and Ubuntu: the package python3-venv) and run make again" >&2; exit 1; }
	@echo "Creating $(VENV) (once; downloads PyTorch, which takes a few minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) "$$(grep '^torch==' constraints.txt)" hatchling
	@$(PIP) --no-build-isolation --editable '.[all,dev]'
	@touch $@

demo: $(STAMP) ## train a small model and print its ledger of entropies; its report is for a browser
	$(BIN)/vaentropy train

test: $(STAMP) ## run the tests, without the slow ones
	$(BIN)/python -m pytest $(PARALLEL)

# pytest's exit status 5 says that no test is marked slow, which is no failure.
slow: $(STAMP) ## run only the tests marked slow, without those of the benchmarks
	$(BIN)/python -m pytest $(PARALLEL) -m slow --ignore=tests/benchmarks || test $$? -eq 5

test-bench: $(STAMP) ## run the slow tests of the benchmarks
	$(BIN)/python -m pytest $(PARALLEL) -m slow tests/benchmarks

test-gpu: $(STAMP) ## run the tests of a GPU, where there is one
	VAENTROPY_TEST_GPU=1 $(BIN)/python -m pytest -k "gpu or cuda"

# BENCH="step replicates" runs these two; the figures of docs/performance.md take an hour on a quiet machine.
bench: $(STAMP) ## run the benchmarks, which print ratios to a peer or a floor
	$(BIN)/python -m benchmarks $(BENCH)

coverage: $(STAMP) ## run all tests and list the lines that none of them reaches
	$(BIN)/python -m pytest -m "slow or not slow" --cov --cov-report=term-missing

# Every page anew: docstrings and the command's help change without their page. A warning fails.
docs: $(STAMP) ## build the user guide; it begins at site/index.html and needs no network
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --fresh-env --doctree-dir build/doctrees docs site

lint: $(STAMP) ## check style, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

format: $(STAMP) ## format the code and repair what can be repaired automatically
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove .venv and everything else that is generated; results under runs/ stay
	rm -rf $(VENV) build dist site htmlcov .coverage .coverage.* .pytest_cache .ruff_cache .hypothesis
	find src tests -type d -name __pycache__ -prune -exec rm -rf {} +
