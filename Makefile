# opdlight: `make train` sets everything up and distils; `make help` lists the rest.
SHELL := /bin/bash
# which Python .venv is made with: the first of 3.11 to 3.14 that is there, or make PYTHON=...
PYTHON ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev train test check format update-constraints

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 27

setup: ## the virtual environment .venv with what training needs (done once, and again when the versions change)
	@tools/setup_env.sh run "$(PYTHON)"

setup-dev: ## the rest of it, for checks and tests
	@tools/setup_env.sh dev "$(PYTHON)"

train: setup ## distil the maths and ALFWorld agent; ARGS="loss=sampled_token" adds options
	.venv/bin/python -m opdlight.train task=agent_math loss=topk_rkl $(ARGS)

# three processes for two cores: tests that start programs wait for them
test: setup-dev ## every test, three at a time; ARGS="tests/losses" narrows it
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup-dev ## lint, format, types, layers
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/python tools/check_layers.py

format: setup-dev ## apply lint fixes and the format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# not after setup-dev: the versions of today may not fit the ranges of today
update-constraints: .venv/bin/python ## remake tools/constraints-*.txt, the versions that are installed
	.venv/bin/python tools/update_constraints.py

.venv/bin/python:
	@tools/setup_env.sh dev "$(PYTHON)"
