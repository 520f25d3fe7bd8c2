# Everything happens in .venv; `make demo` and `make test` need nothing but Python 3.11 or later.
PYTHON ?= python3
BIN := .venv/bin
FUZZ_SECONDS ?= 60

.PHONY: demo test check format docs bench bench-art fuzz clean
.PHONY: test-oldest test-newest lock install-locked install-locked-cpu audit sbom reproducible

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

# The oldest versions that pyproject.toml admits. Of torch there is no CPU build so old: with CUDA it is 3 GB.
test-oldest:
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[dev]"
	build/oldest/bin/python -m pytest

# The newest versions there are, torch with CUDA among them: 3 GB.
test-newest:
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --upgrade --editable ".[dev]"
	build/newest/bin/python -m pytest

# What `pip install undoor` brings in, at the versions of constraints.txt, with every hash that the index lists. The
# second file leaves out torch and the libraries that only its build for CUDA needs.
COMPILE := build/supply/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --constraint constraints.txt --custom-compile-command "make lock" pyproject.toml
lock: build/supply/installed
	$(COMPILE) --output-file requirements.lock
	grep -oE '^(cuda|nvidia|triton)[a-z0-9-]*' requirements.lock > build/supply/cuda.txt
	$(COMPILE) --excludes build/supply/cuda.txt --no-emit-package torch --output-file requirements-cpu.lock

# Into build/locked; pip refuses whatever has another hash.
install-locked:
	$(PYTHON) -m venv build/locked
	build/locked/bin/python -m pip install --require-hashes --requirement requirements.lock
	build/locked/bin/python -m pip install --no-deps .

# Where pip finds a CPU build of torch, no index lists its hash: torch is taken as it is, and all else is checked.
install-locked-cpu:
	$(PYTHON) -m venv build/locked
	build/locked/bin/python -m pip install --no-deps --constraint constraints.txt torch
	build/locked/bin/python -m pip install --require-hashes --requirement requirements-cpu.lock
	build/locked/bin/python -m pip install --no-deps .

# Known vulnerabilities of what is locked. Strict: a package that the service does not answer for is no clean one.
audit: build/supply/installed
	build/supply/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock || \
	  { echo "audit: vulnerabilities are listed above, or the service that knows them did not answer" >&2; exit 1; }

# The software bill of materials, in CycloneDX.
sbom: build/supply/installed
	build/supply/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible \
	  --output-file build/undoor.cdx.json

# Built twice, the packages are the same byte for byte.
reproducible: build/supply/installed
	rm -rf build/first build/second
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) build/supply/bin/python -m build --outdir build/first
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) build/supply/bin/python -m build --outdir build/second
	diff --recursive build/first build/second

build/supply/installed: Makefile
	$(PYTHON) -m venv build/supply
	build/supply/bin/python -m pip install --quiet uv==0.13.9 pip-audit==2.10.1 cyclonedx-bom==7.5.0 build==1.6.1
	touch $@

clean:
	rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
