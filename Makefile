# `make demo` shows the main job on the tiny trained model of this repository, `make test` runs every test.
# Both make .venv themselves. llama-cpp-python has no binary wheel: it is compiled once per set of options, and kept.

PYTHON     ?= python3
VENV       ?= .venv
BIN        := $(VENV)/bin
# The backends that llama.cpp is built with. -DGGML_RPC=on gives the tests a second device. For a GPU:
#     make install CMAKE_ARGS="-DGGML_CUDA=on -DGGML_RPC=on"
# The last options are kept in .venv, so that a later `make test` does not go back to the CPU.
CMAKE_ARGS ?= $(or $(shell cat $(VENV)/.cmake-args 2>/dev/null),-DGGML_RPC=on)
LLAMA      := $(shell sed -n 's/.*"\(llama-cpp-python==[0-9.]*\)".*/\1/p' pyproject.toml)
# pip's own wheel cache ignores CMAKE_ARGS, so wheels are kept here, one folder per version and set of options.
CACHE      ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mimo-gguf/wheels
KEY        := $(subst ==,-,$(LLAMA))-$(shell printf '%s' '$(CMAKE_ARGS)' | cksum | cut -d' ' -f1)
WHEELS     := $(CACHE)/$(KEY)
TINY       := examples/mimo-tiny
DEMO       ?= build/demo
REAL       ?= build/real-model

.DEFAULT_GOAL := help
.PHONY: help install demo test test-browser coverage fuzz fuzz-server soak lint types check tiny real-model \
  test-real-model test-clients test-gpu gpu-env vulkan-headers gpu-check gpu-rehearsal clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s'|'

TOO_OLD = Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). \
  Name another: make $(MAKECMDGOALS) PYTHON=python3.12

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "$(TOO_OLD)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --upgrade pip
	@touch $@

$(WHEELS)/.built: | $(VENV)/.made
	@CMAKE_ARGS='$(CMAKE_ARGS)' $(BIN)/python tools/build_llama_wheel.py --pip $(BIN)/pip --into $(WHEELS) $(LLAMA)
	@touch $@

# The stamp carries the wheel's key, so that other options, or another version, install another build.
$(VENV)/.llama-$(KEY): | $(VENV)/.made $(WHEELS)/.built
	@$(BIN)/pip install -q --no-deps --no-index --force-reinstall $(WHEELS)/*.whl
	@rm -f $(VENV)/.llama-*
	@printf '%s' '$(CMAKE_ARGS)' > $(VENV)/.cmake-args
	@touch $@
	@echo "llama.cpp in $(VENV): built with $(CMAKE_ARGS)"

$(VENV)/.installed: pyproject.toml $(VENV)/.llama-$(KEY)
	@$(BIN)/pip install -q --find-links $(WHEELS) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(BIN)/pip install -q --find-links $(WHEELS) -e '.[dev]'
	@touch $@

$(VENV)/.clients: $(VENV)/.dev
	@$(BIN)/pip install -q --find-links $(WHEELS) -e '.[dev,clients]'
	@touch $@

install: $(VENV)/.installed ## make .venv with the package in it (editable)

demo: $(VENV)/.installed ## show the main job on a tiny trained MiMo: convert, inspect, quantize, fit, chat
	@sh examples/demo.sh $(TINY) $(DEMO) $(BIN)

test: $(VENV)/.dev ## install what the tests need, then run them all
	@$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

test-browser: $(VENV)/.dev ## drive the page in Chromium: apt install chromium chromium-driver (pictures in build/page)
	@BROWSER_NEEDED=1 $(BIN)/python -m pytest -m browser tests/server/page

coverage: $(VENV)/.dev ## run the tests and show the lines that none of them reaches; fails below the floor
	@$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 --cov --cov-report=term:skip-covered

# Each seed makes another set of mutants: make fuzz SEED=7 COUNT=10000
SEED  ?= 1
COUNT ?= 2000
fuzz: $(VENV)/.dev ## try 2000 GGUF files that are well-formed and wrong (5 minutes of CPU time)
	@$(BIN)/python -m tests.fuzz.fuzzer --seed $(SEED) --count $(COUNT)

fuzz-server: $(VENV)/.dev ## send about 2000 requests made from the OpenAPI document to a server (2 minutes)
	@$(BIN)/python -m tests.server.fuzz --seed $(SEED) --count $(COUNT)

# make soak MINUTES=3
MINUTES ?= 15
soak: $(VENV)/.dev ## 64 clients against one server for 15 minutes, some of them rude
	@$(BIN)/python -m tests.server.soak --minutes $(MINUTES)

lint: $(VENV)/.dev ## check rules and formatting with ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev ## check types with mypy, strictly
	@$(BIN)/mypy

check: lint types test ## ruff, mypy and all tests

tiny: $(VENV)/.dev ## train examples/mimo-tiny again (25 minutes of CPU time)
	@$(BIN)/python -m examples.train_mimo_tiny

real-model: $(VENV)/.dev ## build a real language model in MiMo's layout: REAL=FOLDER (a download of 93 MB)
	@$(BIN)/python -m benchmarks.real_model build -o $(REAL)/checkpoint --downloads $(REAL)

test-real-model: $(VENV)/.dev ## run the tests that need the real language model
	@REAL_MODEL=$(REAL) $(BIN)/python -m pytest -m real_model

# Their environment is one of its own, so that nothing that they bring is in .venv.
CLIENTS_VENV ?= .venv-clients
test-clients: ## run the tests with lm-eval and langchain, which are large and installed only for this
	@$(MAKE) --no-print-directory VENV=$(CLIENTS_VENV) $(CLIENTS_VENV)/.clients
	@$(CLIENTS_VENV)/bin/python -m pytest -m clients
	@$(CLIENTS_VENV)/bin/python -m pytest tests/evaluation

# The tests of the engine, runtime and server on a GPU: Mesa's software GPU, unless GPU_ARGS names another backend.
# Its environment is one of its own, so that .venv keeps the build for the CPU.
VULKAN   ?= $(CACHE)/vulkan-headers
GPU_VENV ?= .venv-gpu
INCLUDE  := $(abspath $(VULKAN))/usr
GPU_ARGS ?= -DGGML_VULKAN=on -DGGML_RPC=on -DVulkan_INCLUDE_DIR=$(INCLUDE)/include -DCMAKE_PREFIX_PATH=$(INCLUDE) -DCMAKE_CXX_FLAGS=-I$(INCLUDE)/include -DVulkan_LIBRARY=$(firstword $(wildcard /usr/lib/*-linux-gnu/libvulkan.so.1))
GPU_TESTS ?= tests/gpu tests/engine tests/runtime tests/server
gpu-env:
	@case '$(GPU_ARGS)' in *VULKAN*) sh tools/check_vulkan.sh && $(MAKE) --no-print-directory vulkan-headers && \
	  tools/software_gpu.sh $(abspath $(VULKAN)) ;; esac
	@$(MAKE) --no-print-directory VENV=$(GPU_VENV) CMAKE_ARGS='$(GPU_ARGS)' $(GPU_VENV)/.dev

# First those of tests/gpu, which look at the device's free memory and so want it for themselves; then the others, two at a
# time. These compare texts to the token, and Vulkan's kernels with 16-bit factors move logits three times as far as the rest.
# Fused kernels take a software GPU up to half as long again.
IN_F32 := GGML_VK_DISABLE_F16=1 GGML_VK_DISABLE_FUSION=1 LP_NUM_THREADS=1
GPU_PYTEST = tools/on_gpu.sh $(abspath $(VULKAN)) $(GPU_VENV)/bin/python -m pytest
test-gpu: gpu-env ## run the runtime's tests on a GPU, by default Mesa's software GPU (20 minutes of compiling the first time)
	@$(if $(filter tests/gpu%,$(GPU_TESTS)),$(GPU_PYTEST) -m gpu $(filter tests/gpu%,$(GPU_TESTS)))
	@$(if $(filter-out tests/gpu%,$(GPU_TESTS)),$(IN_F32) $(GPU_PYTEST) -p tests.gpu.fewer -n 2 --dist loadfile \
	  --timeout 1200 -m 'not (real_model or browser or clients)' $(filter-out tests/gpu%,$(GPU_TESTS)))

gpu-rehearsal: gpu-env ## try what gpu-check does with the tiny model, on Mesa's software GPU (20 minutes)
	@tools/on_gpu.sh $(abspath $(VULKAN)) $(GPU_VENV)/bin/python -m benchmarks.gpu --small

vulkan-headers:
	@tools/fetch_vulkan_headers.sh $(VULKAN)

gpu-check: $(VENV)/.dev ## measure memory and speed on this machine's GPU (12 minutes, 12 GB in build/gpu)
	@mkdir -p build/gpu
	@$(BIN)/python -m benchmarks.gpu --folder build/gpu
	@$(BIN)/python -m benchmarks.gpu.documents

clean: ## remove .venv and build output; compiled wheels stay
	@rm -rf $(VENV) $(CLIENTS_VENV) build dist .coverage .pytest_cache .mypy_cache .ruff_cache
