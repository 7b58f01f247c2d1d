# make demo    boot a Debian guest and land in its shell; without a terminal, time a boot and put it away
# make test    all tests
# make build   the venv, with umxen in it        make lint, make bench, make clean
#
# The first run makes .venv. System packages that are missing are installed when root, named otherwise.

VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.built
SOURCES := pyproject.toml setup.py $(wildcard MANIFEST.in) \
           $(shell find hyper backends -name '*.[ch]' -o -name 'build_ffi.py' -o -name 'headers.py')
PYTEST_ARGS ?=

.PHONY: build demo test lint bench clean packages-build packages-test packages-bench
.DEFAULT_GOAL := build

build: $(STAMP)

demo: $(STAMP)
	@$(VENV)/bin/umxen demo

test: packages-test $(STAMP)
	$(PYTHON) -m pytest tests examples $(PYTEST_ARGS)

lint: $(STAMP)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

bench: packages-bench $(STAMP)
	$(PYTHON) -m benchmarks.boot
	$(PYTHON) -m benchmarks.guest

clean:
	rm -rf $(VENV) build ./*.egg-info
	find hyper backends -name '_*.so' -delete

$(STAMP): $(SOURCES) | packages-build
	@test -x $(PYTHON) || { echo "making $(VENV)"; python3 -m venv $(VENV); }
	@echo "installing umxen and what it needs into $(VENV) (compiles the core: about a minute)"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check 'setuptools>=65' wheel 'cffi>=1.16'
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[dev]'
	@touch $@

packages-build packages-test packages-bench: packages-%:
	@toolstack/lab/packages.sh $*
