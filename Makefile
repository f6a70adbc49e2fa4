# The short commands. Each makes its own .venv with what it needs; PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find fastsock/_native -name '*.p[xy][xd]')

export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Programs that the tests start would each compile every module again, where the environment forbids
# to keep what was compiled.
export PYTHONDONTWRITEBYTECODE =

.PHONY: help build demo test watched slow believable page-test locust-test docs docs-test asan tsan valgrind bench engines reliability soak churn hold stop lint dist clean

help: ## list the targets
	@echo "make TARGET, or make TARGET PYTHON=python3.12; the first builds in $(VENV)."
	@sed -nE 's/^([a-z ]+):.* ## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='|' read -r target text; do printf '  %-12s %s\n' "$$target" "$$text"; done

build: $(VENV)/.package ## compile the extension modules, and install the command in .venv
	@echo "built; type: . $(VENV)/bin/activate"

demo: $(VENV)/.package ## load the native server and its twin in pure Python, in turns
	@$(BIN)/fastsock bench || [ $$? = 4 ]  # figures that are not valid, which it says itself

# Most tests spend most of their time waiting, so JOBS processes run them side by side. For a
# debugger run pytest alone: it runs them one after the other in one process.
JOBS ?= 3
SIDE_BY_SIDE := -n $(JOBS) --dist worksteal

test: $(VENV)/.test ## run the tests, without the slow ones
	$(BIN)/pytest $(SIDE_BY_SIDE)

slow: $(VENV)/.test ## run the tests that take minutes
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "slow and not believable" --timeout 1800 -o faulthandler_timeout=1700

# The epoll engine and the load client move connections between epoll and a poll list
# (interest_list.pxd): their tests with all of them in one place, and with a move at every turn.
WATCHED := tests/test_contract*.py tests/test_server.py tests/test_limits.py tests/test_services.py \
	tests/test_network_faults.py tests/test_load.py tests/test_load_faults.py tests/test_load_datagram.py \
	tests/test_nth_failure.py

watched: $(VENV)/.test ## run tests with each way to watch connections forced
	for way in epoll poll alternate; do \
		FASTSOCK_TEST_WATCH=$$way $(BIN)/pytest $(SIDE_BY_SIDE) $(WATCHED) \
			-k "not (pure or native-poll or threads or fork or serial or uring)" || exit 1; \
	done

# Compares what the load client reports with what was disturbed, one test after the other: two that
# ran side by side would disturb each other. Root; each writes build/believable/NAME.json, of which
# docs/believable.md is made, also when some failed. Twenty minutes; without the series of 200 healthy
# runs, ten: make believable BELIEVABLE='believable and not slow'.
BELIEVABLE ?= believable

believable: $(VENV)/.test ## disturb load runs, and check their verdicts (root, 20 minutes)
	rm -f build/believable/*.json
	$(BIN)/pytest -p no:xdist -m '$(BELIEVABLE)' -o faulthandler_timeout=1700; code=$$?; \
		$(BIN)/python -m tests.believable.page && exit $$code

# Debian's package chromium is the browser, and fonts-dejavu-core a font for it.
page-test: $(VENV)/.browser ## look at the pages of reports in Chromium, and take pictures of them
	$(BIN)/pytest -p no:xdist -m browser tests/page

locust-test: $(VENV)/.locust-test ## run Locust with fastsock as its engine (two minutes)
	$(BIN)/pytest -n 4 --dist worksteal -m locust tests/locust  # they wait for most of the time

# A warning is an error, also for a link or an anchor that leads nowhere.
SPHINX := $(BIN)/sphinx-build --quiet --fresh-env --write-all --nitpicky --fail-on-warning

docs: $(VENV)/.docs ## build the site in build/site
	rm -rf build/site
	$(SPHINX) -d build/doctrees docs build/site

docs-test: docs $(VENV)/.docs-test ## look at the site in Chromium, and run every block of its pages
	$(BIN)/pytest -p no:xdist -m site tests/site

# The tests with extension modules built for gcc's sanitizers, in build/asan and build/tsan beside
# the usual modules. The interpreter is built without them, so their runtime is preloaded, and that
# of C++ too: without it an exception in matplotlib ends the process. Leaks are not searched for,
# as Python frees little at its end; tests/nth_failure.py counts every block. PYTHONSAFEPATH keeps
# `python -m` from finding the usual modules in this directory first.
SANITIZED := -m "not slow and not believable and not memory and not browser and not locust and not site" --timeout 600 -o faulthandler_timeout=590
SANITIZE_asan := address,undefined
SANITIZE_tsan := thread
# A small quarantine: freed memory that is held back would look like growth to the tests of memory.
OPTIONS_asan := ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=4:log_path=$(CURDIR)/build/asan/report \
	UBSAN_OPTIONS=print_stacktrace=1:log_path=$(CURDIR)/build/asan/report
OPTIONS_tsan := TSAN_OPTIONS=history_size=4:exitcode=0:log_path=$(CURDIR)/build/tsan/report
TESTS_asan := $(SIDE_BY_SIDE) tests
# The tests of everything with threads, except the fork engine: ThreadSanitizer cannot follow clone().
TESTS_tsan := -k "not fork and not pure" tests/test_contract*.py tests/test_server.py \
	tests/test_binding.py tests/test_system_calls.py tests/test_limits.py tests/test_services.py \
	tests/test_datagram*.py tests/test_load.py tests/test_load_open_loop.py tests/test_load_faults.py \
	tests/test_load_options.py tests/test_load_interrupt.py tests/test_load_datagram.py tests/test_fleet.py

TESTS_valgrind := $(addprefix tests/test_contract.py::test_, echoes_with_any_buffer_size \
	reset_while_bytes_are_unsent counters_count_every_byte_and_end) \
	$(addprefix tests/test_contract_stopping.py::test_, stop_ends_every_connection \
	stop_ends_a_client_that_does_not_read drain_serves_every_client_to_its_end drain_is_cut_short_by_another_stop)

asan: RUNTIME = libasan.so
tsan: RUNTIME = libtsan.so
# With a sanitizer gcc gives a false warning (stringop-overflow) for poll().
asan tsan: $(VENV)/.sanitize ## run the tests with a sanitizer of gcc
	FASTSOCK_LDFLAGS="-fsanitize=$(SANITIZE_$@)" \
	FASTSOCK_CFLAGS="-fsanitize=$(SANITIZE_$@) -g -O1 -Wno-stringop-overflow -DFASTSOCK_CHECK" \
		$(BIN)/python setup.py --quiet build --build-base build/$@ --build-lib build/$@/lib
	rm -f build/$@/report.*
	LD_PRELOAD="$$(gcc -print-file-name=$(RUNTIME)) $$(gcc -print-file-name=libstdc++.so.6)" $(OPTIONS_$@) \
	PYTHONPATH=$(CURDIR)/build/$@/lib:$(CURDIR):$(CURDIR)/tests PYTHONSAFEPATH=1 $(BIN)/pytest $(SANITIZED) $(TESTS_$@)
	@if cat build/$@/report.* 2>/dev/null; then exit 1; else echo "$@: no reports"; fi

# A short suite: valgrind runs one thread at a time, some 30 times slower. Without io_uring: valgrind
# (3.19 at least) does not know that io_uring_enter(2) blocks, and lets no other thread run meanwhile.
# Without the fork engine, as valgrind does not support pidfd_open(2).
valgrind: $(VENV)/.test ## run some tests under valgrind
	PYTHONMALLOC=malloc valgrind --error-exitcode=1 --fair-sched=yes \
		--suppressions=tests/valgrind.supp --gen-suppressions=all --log-file=build/valgrind.log \
		$(BIN)/python $(BIN)/pytest $(SANITIZED) -k "not pure and not fork and not uring and not tcp6 and not unix" \
		$(TESTS_valgrind) tests/test_listener.py tests/test_histogram.py || { cat build/valgrind.log; exit 1; }
	@tail -1 build/valgrind.log

# For the tables, the picture and the figures of the pages.
bench: $(VENV)/.bench ## compare with every rival, and run pytest-benchmark (an hour)
	$(BIN)/pytest benchmarks --benchmark-json benchmarks/results/pytest-benchmark.json
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m benchmarks.table
	$(BIN)/python -m benchmarks.engines_page
	$(BIN)/python -m benchmarks.figures

engines: $(VENV)/.bench ## measure every engine for docs/engines.md (some minutes)
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.figures

# Of rivals too, for docs/reliability.md; UDP needs root.
reliability: $(VENV)/.reliability ## measure every promise (ten minutes)
	$(BIN)/python -m benchmarks.reliability.run; code=$$?; \
		$(BIN)/python -m benchmarks.reliability.table && exit $$code

# Long runs that pass or fail, for an idle machine; figures go to benchmarks/results. Short ones:
# make soak SOAK=30s, make churn CHURN=10000, make hold HOLD=1000 MOST=5000 STUCK=100, make stop
# STOPS=56.
SOAK ?= 10min
CHURN ?= 1000000
HOLD ?= 10000
MOST ?= 1000000
STUCK ?= 1000
STOPS ?= 1400
ENGINE ?= epoll

soak: $(VENV)/.package ## serve and load for long; SOAK=10min
	$(BIN)/python -m benchmarks.long.soak $(SOAK) --engine $(ENGINE)
	$(BIN)/python -m benchmarks.figures

churn: $(VENV)/.package ## open and close many connections; CHURN=1000000
	$(BIN)/python -m benchmarks.long.churn $(CHURN) --engine $(ENGINE)
	$(BIN)/python -m benchmarks.figures

# MOST is how many idle connections are tried at the end, if the machine allows; STUCK is how many
# clients never read.
hold: $(VENV)/.package ## hold idle connections, and clients that never read; HOLD=10000
	$(BIN)/python -m benchmarks.long.hold $(HOLD) --most $(MOST) --engine $(ENGINE)
	$(BIN)/python -m benchmarks.long.hold --stuck $(STUCK) --most $(STUCK) --engine $(ENGINE)
	$(BIN)/python -m benchmarks.figures

stop: $(VENV)/.package ## stop servers of every engine under load; STOPS=1400
	$(BIN)/python -m benchmarks.long.stop $(STOPS)
	$(BIN)/python -m benchmarks.figures

lint: $(VENV)/.lint ## run ruff, cython-lint, mypy and the check of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint fastsock/_native  # it looks for pycodestyle there
	$(BIN)/mypy
	$(BIN)/mypy tests/typing
	mkdir -p build/examples
	awk '/^```python/ {n++; on = 1; next} /^```/ {on = 0} on {print > "build/examples/readme" n ".py"}' README.md
	$(BIN)/mypy --strict build/examples/*.py
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python build/examples/*.py
	$(BIN)/python tests/layers.py

# One wheel for CPython 3.11 and later, and the source distribution. auditwheel names the wheel after
# the oldest C library that has its symbols (manylinux_2_NN), and copies liburing into it if that was
# not linked from an archive. Then the wheel is installed in a new environment and run.
dist: $(VENV)/.dist ## make the wheel and the source distribution in dist/ (minutes)
	rm -rf dist build/dist build/tried
	mkdir -p build
	$(BIN)/python -m build --outdir build/dist >build/dist.log 2>&1 || { tail -30 build/dist.log; exit 1; }
	PATH="$(CURDIR)/$(BIN):$$PATH" auditwheel repair --strip --wheel-dir dist build/dist/*.whl
	mv build/dist/*.tar.gz dist
	$(BIN)/abi3audit --strict dist/*.whl
	$(PYTHON) -m venv build/tried
	build/tried/bin/pip install --quiet dist/*.whl
	cd / && $(CURDIR)/build/tried/bin/fastsock info

clean: ## delete .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find fastsock/_native -name '*.so' -delete
	rm -rf benchmarks/rivals/bin

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fastsock needs Python 3.11 or later; say make PYTHON=python3.12, for example"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "on Debian and Ubuntu: apt-get install python3-venv python3-dev"; exit 1; }

# The io_uring engine needs liburing, which root on Debian and Ubuntu installs. Without it the package
# has all other engines.
LIBURING := pkg-config --exists 'liburing >= 2.3' 2>/dev/null
APT_GET := apt-get -qq -o DPkg::Lock::Timeout=60
FETCH := $(APT_GET) install -y --no-install-recommends liburing-dev pkg-config

# The build's requirements are installed in the environment, so that an edit compiles what changed
# and makes no new environment. pip installs once, and again when the metadata change. A missing tool
# is one line from setup.py; from pip it would be ten.
$(VENV)/.installed: $(VENV)/bin/python setup.py pyproject.toml fastsock/_version.py
	@$(LIBURING) || { [ "$$(id -u)" = 0 ] && command -v apt-get && \
		{ $(FETCH) || { $(APT_GET) update && $(FETCH); }; }; } >/dev/null 2>&1 || \
		echo "no engine io_uring: apt-get install liburing-dev pkg-config, then make clean"
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' >$(VENV)/requires.txt
	@echo "installing the build's requirements in $(VENV)"
	@$(BIN)/pip install --quiet --requirement $(VENV)/requires.txt
	@echo "compiling the extension modules: half a minute, and seconds after an edit"
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@$(BIN)/pip install --quiet --no-build-isolation --editable .
	@touch $@

# Cython compiles the changed files, and those that cimport them.
$(VENV)/.package: $(VENV)/.installed $(SOURCES)
	@$(BIN)/python setup.py --quiet build_ext --inplace
	@touch $@

# Adds the packages of an extra; the package itself is installed already.
$(addprefix $(VENV)/.,test browser locust-test docs docs-test sanitize bench reliability lint dist): $(VENV)/.%: $(VENV)/.package
	$(BIN)/pip install --quiet 'fastsock[$*]'
	@touch $@
