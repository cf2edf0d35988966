# make demo and make test are all a newcomer needs; both make or reuse .venv. `make help` lists the rest.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
export VENV

# Tests of the Python side: `make test-py ARGS="tests/placement -x"`.
ARGS ?=
CPP = $(shell find csrc tests/native daemon/ktd/cuda/kernels -name '*.cpp' -o -name '*.h' -o -name '*.cu' 2>/dev/null)

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: install
install: ## ktd, the engine and the test tools in .venv; only what changed
	@scripts/install.sh $(VENV) constraints.txt engine,dev

.PHONY: demo
demo: install ## Serve a small MoE, move its experts while it answers, show what changes and what does not
	@$(PY) -m ktd demo

.PHONY: test
test: install ## Everything that CI checks
	@$(MAKE) --no-print-directory -k -j2 --output-sync=target static native-test; checks=$$?; \
	$(MAKE) --no-print-directory test-py; tests=$$?; \
	[ $$checks = 0 ] || echo "make test: checks before the Python tests failed; see above" >&2; \
	[ $$checks = 0 ] && [ $$tests = 0 ]

.PHONY: static lint types imports format-check
static: lint types imports proto-check ## All checks that run nothing
lint: install ## ruff's rules and formatting, clang-format
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(if $(CPP),$(VENV)/bin/clang-format --dry-run -Werror $(CPP))
types: install ## mypy --strict
	$(PY) -m mypy -p ktd -p ktd_tui
imports: install ## Who may import whom (docs/internals.md)
	$(VENV)/bin/lint-imports --no-cache

.PHONY: format
format: install ## Rewrite Python and C++ as the formatters want it
	$(PY) -m ruff check --fix --select I
	$(PY) -m ruff format
	$(if $(CPP),$(VENV)/bin/clang-format -i $(CPP))

.PHONY: native-test
native-test: install ## C++ with warnings as errors, its tests under ASan/UBSan and TSan
	PATH="$(abspath $(VENV))/bin:$$PATH" tests/native/run.sh

.PHONY: test-py
test-py: install ## pytest, several files at a time; with ARGS one pytest that gets them
	scripts/test_py.sh $(ARGS)

.PHONY: wheel-test
wheel-test: install ## The wheel in an empty environment, without torch and SGLang
	$(PY) -m pytest tests/packaging $(ARGS)

.PHONY: test-matrix
test-matrix: install ## The tests that meet SGLang, on the oldest and the newest release that ktd supports
	@scripts/install.sh .venv-0.5.17 constraints-0.5.17.txt engine,dev
	scripts/test_matrix.sh .venv-0.5.17 $(VENV)

.PHONY: proto proto-check
proto: install ## Regenerate daemon/ktd/v1 and daemon/ktd/internal from proto/
	PYTHON=$(abspath $(PY)) scripts/generate_proto.sh
proto-check: install ## buf lint, buf breaking, generated code reproducible
	scripts/check_proto.sh

.PHONY: clean
clean: ## Remove build products and caches; virtual environments stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .work
	find daemon tui tests -name __pycache__ -type d -prune -exec rm -rf {} +
