# `make demo` shows the main job on the tiny trained model of this repository, `make test` runs every test.
# Both make .venv themselves. llama-cpp-python has no binary wheel: it is compiled once (5-10 minutes) and kept.

PYTHON     ?= python3
VENV       ?= .venv
BIN        := $(VENV)/bin
# -DGGML_RPC=on gives the tests a second device. For a GPU: make demo CMAKE_ARGS="-DGGML_CUDA=on -DGGML_RPC=on"
CMAKE_ARGS ?= -DGGML_RPC=on
LLAMA      := $(shell sed -n 's/.*"\(llama-cpp-python==[0-9.]*\)".*/\1/p' pyproject.toml)
# pip's own wheel cache ignores CMAKE_ARGS, so wheels are kept here, one folder per version and set of options.
CACHE      ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/mimo-gguf/wheels
WHEELS     := $(CACHE)/$(subst ==,-,$(LLAMA))-$(shell printf '%s' '$(CMAKE_ARGS)' | cksum | cut -d' ' -f1)
TINY       := examples/mimo-tiny
DEMO       ?= build/demo

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types check tiny clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s'|'

$(WHEELS)/.built:
	@echo "Compiling $(LLAMA) with $(CMAKE_ARGS): 5 to 10 minutes, once. It is kept in $(WHEELS)"
	@mkdir -p $(WHEELS)
	@CMAKE_ARGS='$(CMAKE_ARGS)' $(BIN)/pip wheel -q --no-deps --no-cache-dir --no-binary llama-cpp-python -w $(WHEELS) $(LLAMA)
	@touch $@

$(VENV)/.made:
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --upgrade pip
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	@$(MAKE) -s $(WHEELS)/.built
	@$(BIN)/pip install -q --find-links $(WHEELS) -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@$(BIN)/pip install -q --find-links $(WHEELS) -e '.[dev]'
	@touch $@

install: $(VENV)/.installed ## make .venv with the package in it (editable)

demo: $(VENV)/.installed ## the main job on a tiny trained MiMo: convert, inspect, quantize, fit, chat
	@PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh $(TINY) $(DEMO)

test: $(VENV)/.dev ## install what the tests need, then run them all
	@$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0

lint: $(VENV)/.dev ## ruff: rules and formatting
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(VENV)/.dev ## mypy, strict
	@$(BIN)/mypy

check: lint types test ## everything CI runs

tiny: $(VENV)/.dev ## train examples/mimo-tiny again (25 minutes of CPU time)
	@$(BIN)/python -m examples.train_mimo_tiny

clean: ## remove .venv and build output; compiled wheels stay
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
