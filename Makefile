# `make demo` and `make test` are all a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export MODELZIP_DATA ?= $(if $(wildcard ../shared/data),$(abspath ../shared/data))
export MODELZIP_MODELS ?= $(if $(wildcard ../shared/models),$(abspath ../shared/models))

# Two test processes on two cores: with more threads than cores, OpenMP spins instead of working.
check test-slow: export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow check fuzz format clean

demo: $(VENV)/.demo  ## train, compress and report on scikit-learn's digits
	rm -rf runs/digits runs/digits.partial
	$(BIN)/modelzip run recipes/digits.yaml --out runs/digits
	@echo "The report is runs/digits/report.md"

test: $(VENV)/.dev check  ## every check and test that CI runs

test-slow: $(VENV)/.dev  ## the long ones, on real data
	$(BIN)/python -m pytest -q -m slow --timeout 3600
	$(BIN)/python -m pytest -q tests/numerics tests/archive tests/data --hypothesis-profile default

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -n 2

fuzz: $(VENV)/.dev  ## what reads files of strangers, two minutes for each target
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[fuzz]"
	$(BIN)/python fuzz/archive.py

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.demo: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@
