# One line a target. `make demo` and `make test` work on a fresh clone; everything else builds on .venv.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NATIVE := $(shell find native CMakeLists.txt -type f)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-fast test-external check fix bench docs clean native
demo: $(STAMP)
	$(BIN)/python tools/demo.py
test: $(STAMP)
	$(BIN)/pytest tests -m "not external and not slow" -n 2
test-fast: $(STAMP)
	$(BIN)/pytest tests/unit tests/conformance tests/properties tests/golden -m "not external and not slow" -n 2
test-external: $(STAMP)
	$(BIN)/pytest tests/external $(ARGS)
check: $(STAMP)
	$(BIN)/python tools/check.py
fix: $(STAMP)
	$(BIN)/ruff format . && $(BIN)/ruff check --fix . && $(BIN)/clang-format -i $$(git ls-files 'native/*.h' 'native/*.cpp')
bench: $(STAMP)
	$(BIN)/python benchmarks/speed.py $(ARGS)
docs: $(STAMP)
	$(BIN)/python tools/generate_docs.py
native: $(STAMP)
clean:
	rm -rf build demo .mypy_cache .ruff_cache .pytest_cache

.venv/.packages: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "lilliput needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -qq --no-compile -c constraints.txt torch
	$(BIN)/python tools/install_requirements.py
	touch $@
$(STAMP): .venv/.packages $(NATIVE)
	$(BIN)/pip install -qq --no-build-isolation --no-deps -e .
	touch $@
