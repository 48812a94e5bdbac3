# `make demo` shows the product end to end; `make test` runs the suite. Both make their own environment.
# `make coverage` is `make test` with the share of lines and branches that the suite reaches; `make sanitize` runs the
# tests of the kernels in builds with sanitizers. JOBS processes run the tests, with one thread each.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*)
NATIVE := $(wildcard csrc/*.cpp csrc/*.hpp csrc/*.inl tests/csrc/*.cpp)

.PHONY: demo test coverage sanitize check format clean

demo: $(VENV)/.installed
	$(BIN)/finepruning compress
	$(BIN)/finepruning bench runs/latest

test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

coverage:
	PYTEST_ADDOPTS="--cov --cov-report=term:skip-covered" $(MAKE) test

sanitize: $(VENV)/.installed-test
	scripts/sanitize.sh $(BIN)/python

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(NATIVE)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -e '.[test]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install -e '.[dev]'
	touch $@

clean:
	rm -rf build dist $(VENV)
