# make demo    set up, pre-train a small R2D2 on real Chinese image-text pairs, look at what it retrieves
# make test    set up, lint, run the tests
# The environment is .venv, made anew when setup.cfg or constraints.txt changes.

PYTHON ?= python3
EXTRAS ?= dev
# test processes; each runs torch on one thread
JOBS   ?= 2
OUTPUT ?= runs/demo
# extra arguments: make test ARGS="tests/model -k fgr", make demo ARGS="--seed 1 --overwrite"
ARGS   ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: help venv demo test test-fast lint types bench peer compat wheel docs clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo     set up .venv, pre-train a small R2D2 and show what it retrieves (runs/demo)'
	@echo 'make test     set up .venv, lint, run the tests'
	@echo 'make lint     ruff, its rules and its layout, and mypy'
	@echo 'make test-fast  the tests that take less than a second each'
	@echo 'make bench    measure every figure that the README claims'
	@echo "make peer     run transformers' own common test suites against the models"
	@echo 'make compat   test the oldest and the newest supported versions'
	@echo "make wheel    install the built wheel in an empty environment and run the README's first steps there"
	@echo 'make docs     build the guides and the API reference as a site, in both languages (site/)'
	@echo 'make clean    remove caches and build products (runs/ and .venv stay)'

venv: $(STAMP)

$(STAMP): setup.cfg constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	# the 21,128-token vocabulary; without its dependencies, which pin old versions
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps cn-clip==1.6.0
	@touch $@

demo: $(STAMP)
	$(BIN)/r2d2 demo --output $(OUTPUT) $(ARGS)

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	@rm -rf .cache/types && mkdir -p .cache/types/modeling_r2d2
	@ln -s $(addprefix $(CURDIR)/,$(wildcard modeling_r2d2/*) processing hub_cards) .cache/types/modeling_r2d2
	$(BIN)/mypy

test: lint
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

test-fast: lint
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow" --durations 5 $(ARGS)

bench: $(STAMP)
	$(OFFLINE) $(BIN)/python -m benchmarks $(ARGS)

peer: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/peer/run.py $(ARGS)

compat: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/compat/run.py $(ARGS)

wheel: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/wheel/run.py $(ARGS)

docs: $(STAMP)
	$(OFFLINE) NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(ARGS)
	@echo 'open site/index.html; the search in it needs a server: $(BIN)/python -m http.server --directory site'

clean:
	rm -rf .cache .pytest_cache .ruff_cache build dist site *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
