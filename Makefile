# `make run` and `make test` are all that is needed: each makes .venv, installs, and does its job.
# Another interpreter: make test PYTHON=python3.12. Arguments of the run: make run ARGS="--out runs/mine --seeds 8".

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: run test test-all lint notebooks fuzz faults soak clean

run: .venv/installed
	$(BIN)/jaxpgd run --resume $(ARGS)

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: .venv/installed
	HYPOTHESIS_PROFILE=nightly $(BIN)/python -m pytest -q -n 2 tests/fuzz/test_properties.py
	$(BIN)/python -m benchmarks fuzz --inputs 1000 $(ARGS)

faults: .venv/installed
	$(BIN)/python -m benchmarks faults $(ARGS)

soak: .venv/installed
	$(BIN)/python -m benchmarks soak $(ARGS)

notebooks: .venv/installed-notebooks
	cd notebooks && for book in *.ipynb; do ../$(BIN)/jupyter execute "$$book" || exit 1; done

# the stamps are newer than what they installed from, so that installation happens once
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing jaxpgd into .venv (once; a minute or two)"
	$(INSTALL) --editable ".[mujoco,test]"
	@touch $@

.venv/installed-notebooks: .venv/installed
	$(INSTALL) --editable ".[notebooks]"
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11 or missing; name another with: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path "./.git/*" -prune -exec rm -rf {} +
