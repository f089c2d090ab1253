# Each target makes what it needs: a virtual environment in $(VENV), the package in it,
# and the extra that the target asks for. Only Python 3.11 or later and make come first.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PYTEST_ARGS ?=
LOOPS := additive encoding lasso omp operators search test_intervals.py

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test test-uncompiled test-interop lint format docs gpu dist clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 28

demo: $(VENV)/installed-plot,images ## Learn from and denoise two photographs
	$(BIN)/python examples/denoise_photographs.py

# The array API switch is read when scipy is imported, and without it scikit-learn skips
# checks. One thread a worker: threads that outnumber cores wait for each other. Machine code leaves
# no trace, so the coverage of compiled loops is from test-uncompiled, which PYTEST_ARGS leaves out.
test: $(VENV)/installed-test ## Run the tests and report coverage (PYTEST_ARGS="-k name --no-cov")
	@$(if $(PYTEST_ARGS),:,$(MAKE) --no-print-directory test-uncompiled); uncompiled=$$?; \
	SCIPY_ARRAY_API=1 OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest \
		-n $(WORKERS) --cov --cov-append --cov-report=term $(PYTEST_ARGS) && exit $$uncompiled

test-uncompiled: $(VENV)/installed-test ## Run the tests of compiled loops as plain Python
	NUMBA_DISABLE_JIT=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(LOOPS:%=tests/%) \
		-n $(WORKERS) -m uncompiled --cov --cov-report= --cov-fail-under=0

# An environment of its own: other people's packages hold back versions that the tests have newer.
test-interop: $(VENV)-interop/installed ## Run the tests with nilearn, HyperSpy and AnnData
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(VENV)-interop/bin/python -m pytest tests/interop $(PYTEST_ARGS)

lint: $(VENV)/installed-lint ## Check rules and format with ruff, and types with mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy --strict tools/typed_usage.py

format: $(VENV)/installed-lint ## Apply ruff's safe fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-docs ## Build the documentation, warnings are errors
	OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

gpu: $(VENV)/installed-test ## Test and measure on a CUDA device, in nine minutes, to gpu.json
	$(BIN)/python benchmarks/gpu.py --out gpu.json

dist: $(VENV)/installed-release ## Build the wheel and the sdist into dist, and check them
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl

clean: ## Remove the virtual environment, caches and builds
	rm -rf $(VENV) $(VENV)-interop build dist docs/_build docs/auto_examples docs/generated skpudle_demo
	rm -rf .coverage .coverage.* htmlcov .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# installed-NAME: the package with the extra NAME, again whenever pyproject.toml changed.
$(VENV)/installed-%: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --editable ".[$*]"
	@touch $@

$(VENV)-interop/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-interop
	$(VENV)-interop/bin/python -m pip install --editable ".[interop]"
	@touch $@

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("skpudle needs Python 3.11 or later, and $(PYTHON) is %s: try make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
