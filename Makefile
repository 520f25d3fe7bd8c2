# Everything is installed into .venv. `make demo` and `make test` need only Python 3.11 or later.
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

# The documentation with the reference from the docstrings, in build/site. A broken link is an error.
docs: .venv/docs
	$(BIN)/mkdocs build --strict

# The demonstration with five seeds. It rewrites results/demo and the table in README.md.
bench: .venv/installed
	$(BIN)/python -m studies.demo_seeds

# A comparison with ART, which is installed into build/art. It rewrites results/against-art.
bench-art: .venv/installed
	$(BIN)/python -m benchmarks.against_art

# Mutated files for every reader and loader. Faults are kept in build/fuzz/found, and then the exit code is 1.
fuzz: build/fuzz/installed
	$(BIN)/python -m tools.fuzz --seconds $(FUZZ_SECONDS)

# torch is installed first and alone, so that pip takes the CPU build if an index offers one.
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

# The oldest versions that pyproject.toml allows. PyPI has torch only as a build with CUDA: 3 GB.
test-oldest:
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable ".[dev]"
	build/oldest/bin/python -m pytest

# The newest versions; torch is the build with CUDA: 3 GB.
test-newest:
	$(PYTHON) -m venv build/newest
	build/newest/bin/python -m pip install --quiet --upgrade --editable ".[dev]"
	build/newest/bin/python -m pytest

# The packages that `pip install undoor` installs, in the versions of constraints.txt, with the hashes that the index
# lists. The second file leaves out torch and the libraries that only its build for CUDA needs.
COMPILE := build/supply/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
  --constraint constraints.txt --custom-compile-command "make lock" pyproject.toml
lock: build/supply/installed
	$(COMPILE) --output-file requirements.lock
	grep -oE '^(cuda|nvidia|triton)[a-z0-9-]*' requirements.lock > build/supply/cuda.txt
	$(COMPILE) --excludes build/supply/cuda.txt --no-emit-package torch --output-file requirements-cpu.lock

# An installation in build/locked. pip refuses a file with another hash.
install-locked:
	$(PYTHON) -m venv build/locked
	build/locked/bin/python -m pip install --require-hashes --requirement requirements.lock
	build/locked/bin/python -m pip install --no-deps .

# No index lists the hash of the CPU build of torch: it is not checked, but all other packages are.
install-locked-cpu:
	$(PYTHON) -m venv build/locked
	build/locked/bin/python -m pip install --no-deps --constraint constraints.txt torch
	build/locked/bin/python -m pip install --require-hashes --requirement requirements-cpu.lock
	build/locked/bin/python -m pip install --no-deps .

# Known vulnerabilities of the locked packages. With --strict, a package that cannot be looked up is an error.
audit: build/supply/installed
	build/supply/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock || \
	  { echo "audit: see the vulnerabilities above, or the vulnerability service did not answer" >&2; exit 1; }

# The software bill of materials in the CycloneDX format.
sbom: build/supply/installed
	build/supply/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible \
	  --output-file build/undoor.cdx.json

# Build the packages twice and compare them byte for byte.
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
