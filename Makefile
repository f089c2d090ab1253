# Each target makes what it needs: a virtual environment in $(VENV), the package in it,
# and the extra that the target asks for. Only Python 3.11 or later and make come first.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=
# --refuse-skips: a skip that tests/conftest.py does not allow is a failure
SKIPS ?=
LOOPS := nmf encoding lasso omp operators search test_intervals.py

# One extra for all targets instead of one each, as CI has it: an installation instead of three.
EXTRA ?=
installed = $(VENV)/installed-$(or $(EXTRA),$1)

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help install test test-uncompiled coverage lint format docs gpu dist clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 28

install: $(call installed,dev) ## Install the package and what its tests, lint and documentation need

# The array API switch is read when scipy is imported, and without it scikit-learn skips
# checks. One thread a worker: threads that outnumber cores wait for each other.
test: $(call installed,test) ## Run the tests (PYTEST_ARGS="-k name": some of them)
	@$(if $(PYTEST_ARGS),:,$(MAKE) --no-print-directory test-uncompiled); uncompiled=$$?; \
	SCIPY_ARRAY_API=1 OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest \
		-n $(WORKERS) $(if $(COVERAGE),--cov --cov-append --cov-report=term) \
		$(SKIPS) $(PYTEST_ARGS) && exit $$uncompiled

test-uncompiled: $(call installed,test) ## Run the tests of compiled loops as plain Python
	NUMBA_DISABLE_JIT=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(LOOPS:%=tests/%) \
		-n $(WORKERS) -m "uncompiled and not slow" \
		$(if $(COVERAGE),--cov --cov-report= --cov-fail-under=0)

# Machine code leaves no trace, so the coverage of compiled loops is from test-uncompiled.
coverage: ## Run the tests and report coverage, for half as much time again
	@$(MAKE) --no-print-directory test COVERAGE=yes

lint: $(call installed,lint) ## Check rules, format, types, spelling, and the workflows of CI
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/zizmor --offline --quiet --no-progress .github
	$(BIN)/python -m mypy --strict tools/typed_usage.py

format: $(call installed,lint) ## Apply ruff's safe fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(call installed,docs) ## Build the documentation, warnings are errors
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

gpu: $(call installed,test) ## Test and measure on a CUDA device, to gpu.json
	$(BIN)/python benchmarks/gpu.py --out gpu.json

dist: $(call installed,release) ## Build the wheel and the sdist into dist, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

clean: ## Remove the virtual environment, caches and builds
	rm -rf $(VENV) build dist docs/_build docs/auto_examples docs/generated skpudle_demo
	rm -rf .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# installed-NAME: the package with the extra NAME, again whenever pyproject.toml changed. Python
# compiles the modules that are imported; pip would compile all, which takes a minute.
$(VENV)/installed-%: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --no-compile --editable ".[$*]"
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("skpudle needs Python 3.11 or later, and $(PYTHON) is %s: try make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
