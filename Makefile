# `make run` and `make test` are all that is needed: each makes .venv, installs, and does its job.
# Another interpreter: make test PYTHON=python3.12. Arguments of the run: make run ARGS="--out runs/mine --seeds 8".

PYTHON ?= python3
ARGS ?=
DATASET ?= mujoco/hopper/medium-local-v0
PYTHON312 ?= python3.12
REHEARSAL ?= .accelerator-venv
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile
# without compiling all that is installed to bytecode, of which most is never imported
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

.PHONY: run test test-all lint notebooks docs fuzz faults soak accelerator-pack accelerator-rehearsal clean

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

# warnings are errors; open docs/_build/html/index.html
docs: .venv/installed-docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html $(ARGS)

accelerator-pack: .venv/installed
	@$(BIN)/python -m benchmarks.accelerator_pack build $(DATASET)

# of a copy that holds what would travel, with nothing installed but what such a machine has
accelerator-rehearsal: $(REHEARSAL)/installed
	rm -rf $(REHEARSAL)/checkout && mkdir $(REHEARSAL)/checkout
	git ls-files -coz --exclude-standard | tar -c --null --ignore-failed-read -T - | tar -x -C $(REHEARSAL)/checkout
	PYTHON="$(abspath $(REHEARSAL))/bin/python" $(REHEARSAL)/checkout/benchmarks/accelerator.sh --rehearse \
	  --pack .accelerator --out accelerator-out $(ARGS)

$(REHEARSAL)/installed: constraints.txt benchmarks/accelerator_pack.py | .venv/installed
	$(BIN)/python -m benchmarks.accelerator_pack environment $(PYTHON312) $(REHEARSAL)
	@touch $@

# the stamps are newer than what they installed from, so that installation happens once
.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing jaxpgd into .venv (once; a minute or two)"
	$(INSTALL) --editable ".[mujoco,test]"
	@touch $@

.venv/installed-notebooks: .venv/installed
	$(INSTALL) --editable ".[notebooks]"
	@touch $@

.venv/installed-docs: .venv/installed
	$(INSTALL) --editable ".[docs]"
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11 or missing; name another with: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv .accelerator .accelerator-venv docs/_build build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path "./.git/*" -prune -exec rm -rf {} +
