# Two commands matter: `make demo` and `make test`. Both make the environment when it is not there yet.
# On Linux the package index's torch brings CUDA along where no CPU build is nearer; to keep it small there:
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
NATIVE := setup.py $(wildcard csrc/*)
INSTALL = $(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test lint sweep bench models docs clean

demo: .venv/demo.stamp  ## fine-tune a real model on real messages
	$(BIN)/fw demo

test: .venv/dev.stamp lint  ## lint, types and every test
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2
	@echo "size: $$(git ls-files 'src/*.py' | xargs cat | wc -l) lines in $$(git ls-files 'src/*.py' | wc -l) files of src, \
	$$(git ls-files 'tests/*.py' | xargs cat | wc -l) lines of tests"

lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sweep: .venv/dev.stamp  ## the full product of methods, architectures and dtypes
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 FEATHERWEIGHT_TESTS=sweep $(BIN)/python -m pytest -n 2

bench: .venv/dev.stamp  ## every claim measured again, a day of it; most scripts go on where they stopped
	for claim in benchmarks/[a-z]*.py; do $(BIN)/python $$claim || exit 1; done

models: .venv/dev.stamp  ## the two small models of models/ made anew: about two hours of one core
	for model in bert t5; do OMP_NUM_THREADS=1 $(BIN)/python models/pretrain.py $$model || exit 1; done

docs: .venv/dev.stamp  ## the tables of README and docs, made anew from classes and JSON
	$(BIN)/python docs/tables.py

clean:
	rm -rf .venv out build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/dev.stamp: pyproject.toml constraints.txt $(NATIVE) | .venv/bin/python
	$(INSTALL) -e ".[dev]"
	@touch .venv/dev.stamp .venv/demo.stamp

.venv/demo.stamp: pyproject.toml constraints.txt $(NATIVE) | .venv/bin/python
	$(INSTALL) -e ".[demo]"
	@touch $@
