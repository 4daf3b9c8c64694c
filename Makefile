# opdlight: `make train` sets everything up and distils; `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3.11
READY := .venv/ready
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup train test check format

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

setup: $(READY) ## the virtual environment .venv (once; again when pyproject.toml changes)

$(READY): pyproject.toml tools/setup_env.sh
	@tools/setup_env.sh "$(PYTHON)"

train: $(READY) ## distil the maths and ALFWorld agent; ARGS="loss=sampled_token" adds options
	.venv/bin/python -m opdlight.train task=agent_math loss=topk_rkl $(ARGS)

test: $(READY) ## every test, on two cores; ARGS="tests/losses" narrows it
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 2 --dist loadfile $(ARGS)

check: $(READY) ## lint, format, types, layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python tools/check_layers.py

format: $(READY) ## apply lint fixes and the format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
