# The short commands. Each makes its own .venv with what it needs; PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml $(wildcard fastsock/_native/*.pyx fastsock/_native/*.pxd)

.PHONY: demo test slow bench reliability soak churn hold lint dist clean

# The native server and its standard-library twin, loaded in turns, side by side.
demo: $(VENV)/.package
	$(BIN)/fastsock bench

test: $(VENV)/.test
	$(BIN)/pytest

# The tests that take minutes.
slow: $(VENV)/.test
	$(BIN)/pytest -m slow --timeout 1800 -o faulthandler_timeout=1700

# Comparison with every rival, for docs/benchmarks.md, and the pytest-benchmark suite. Some minutes.
bench: $(VENV)/.bench
	$(BIN)/pytest benchmarks --benchmark-json benchmarks/results/pytest-benchmark.json
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.table

# Every promise measured, rivals beside it, for docs/reliability.md. Ten minutes; root for UDP.
reliability: $(VENV)/.reliability
	$(BIN)/python -m benchmarks.reliability.run; code=$$?; \
		$(BIN)/python -m benchmarks.reliability.table && exit $$code

# Long runs on an idle machine, which pass or fail; figures go to benchmarks/results. For a trial:
# make soak SOAK=30s, make churn CHURN=10000, make hold HOLD=1000 MOST=5000 STUCK=100.
SOAK ?= 10min
CHURN ?= 1000000
HOLD ?= 10000
MOST ?= 1000000
STUCK ?= 1000
ENGINE ?= epoll

soak: $(VENV)/.package
	$(BIN)/python -m benchmarks.long.soak $(SOAK) --engine $(ENGINE)

churn: $(VENV)/.package
	$(BIN)/python -m benchmarks.long.churn $(CHURN) --engine $(ENGINE)

# MOST is how many idle connections are tried at the end, if the machine allows; STUCK is how many
# clients never read.
hold: $(VENV)/.package
	$(BIN)/python -m benchmarks.long.hold $(HOLD) --most $(MOST) --engine $(ENGINE)
	$(BIN)/python -m benchmarks.long.hold --stuck $(STUCK) --most $(STUCK) --engine $(ENGINE)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint fastsock/_native  # it looks for pycodestyle there
	$(BIN)/mypy

# One wheel for CPython 3.11 and later, and the source distribution.
dist: $(VENV)/.dist
	$(BIN)/python -m build
	$(BIN)/abi3audit --strict dist/*.whl

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f fastsock/_native/*.so
	rm -rf benchmarks/rivals/bin

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastsock needs Python 3.11 or later; say make PYTHON=python3.12, for example"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "on Debian and Ubuntu: apt-get install python3-venv python3-dev"; exit 1; }

$(VENV)/.package: $(VENV)/bin/python $(SOURCES)
	$(BIN)/pip install --quiet --editable .
	@touch $@

$(addprefix $(VENV)/.,test bench reliability lint dist): $(VENV)/.%: $(VENV)/.package
	$(BIN)/pip install --quiet --editable '.[$*]'
	@touch $@
