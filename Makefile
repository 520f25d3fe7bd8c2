# Everything happens in .venv; `make demo` and `make test` need nothing but Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
FUZZ_SECONDS ?= 60

.PHONY: demo test check format docs bench bench-art fuzz clean

demo: .venv/installed
	$(BIN)/undoor demo --out build/demo --overwrite

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The pages, with the reference from the docstrings, in build/site; a link that leads nowhere ends it.
docs: .venv/docs
	$(BIN)/mkdocs build --strict

bench: .venv/installed
	$(BIN)/python benchmarks/demo_seeds.py

bench-art: .venv/installed
	$(BIN)/python benchmarks/against_art.py

# Mutated files for every reader and loader; what is found lies in build/fuzz/found, and ends it.
fuzz: build/fuzz/installed
	$(BIN)/python benchmarks/fuzz.py --seconds $(FUZZ_SECONDS)

# torch comes first and alone: the constraint picks the CPU build wherever one is at hand.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[docs]"
	touch $@

build/fuzz/installed: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade --target build/fuzz atheris
	touch $@

clean:
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
