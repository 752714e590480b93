# make demo | make test | make check | make test-all | make test-lowest | make format | make clean
PYTHON ?= python3
BIN := .venv/bin
# One worker more than processors, since some tests wait for other processes.
WORKERS = $(shell $(PYTHON) -c "import os; print(min(4, 1 + (os.cpu_count() or 1)))")

.PHONY: demo test test-all test-lowest check format clean

.venv/bin/python:
	$(PYTHON) -m venv .venv

# One stamp file per extra: a second run installs nothing.
.venv/installed-%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

demo: .venv/installed-demo
	$(BIN)/clipkit demo $(ARGS)

# In parallel, with one thread each. Bytecode is written even if the environment disables it: tests start many processes,
# which would each compile the sources again.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

test-all: .venv/installed-dev .venv/installed-mteb .venv/installed-towers
	$(BIN)/python -m pytest -m "" $(ARGS)

# The lowest declared version of each direct dependency, with Python 3.11; slow to install.
.venv-lowest/installed: pyproject.toml tests/lowest.txt
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint tests/lowest.txt --editable '.[dev]'
	touch $@

test-lowest: .venv-lowest/installed
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= .venv-lowest/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .venv-lowest .mypy_cache .ruff_cache .pytest_cache build dist
