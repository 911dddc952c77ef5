# One word per thing one may want; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev demo serve test check gen release-contract bench chaos dockerd dockerd-stop agent-image clean
HOME_DIR ?= $(or $(HYPERFACTORY_HOME),run)
PY := .venv/bin/python
WORKERS ?= 2

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

setup: ## make .venv with everything that demo and serve need (quick when done before)
	@scripts/setup.sh embedded

setup-dev:
	@scripts/setup.sh embedded,dev
	@scripts/redis8.sh || true

demo: setup ## assemble a real crew, run a mission, lose an agent on purpose, leave nothing behind
	@.venv/bin/hyperfactory demo $(ARGS)

serve: setup ## run the stack in the foreground; credentials in run/client.json; Ctrl-C stops it
	@exec $(PY) -m embedded --under-make --home $(HOME_DIR) $(ARGS)

test: setup-dev ## run every test, two files at a time (WORKERS=0: one after another, in one process)
	@.venv/bin/pytest -n $(WORKERS) $(ARGS)

check: setup-dev ## format, lint, types, floors, contract, freshness of gen/ (a minute at most)
	@scripts/check.sh

gen: setup-dev ## regenerate gen/ from proto/
	@scripts/gen.sh

release-contract: setup-dev gen ## from here on `make check` holds the contract to what it is now
	@cp gen/hyperfactory.binpb proto/released.binpb

bench: setup-dev ## measure spawn, assembly, healing and fan-out beside their floors
	@PYTHONPATH=.:gen exec $(PY) -m bench $(ARGS)

chaos: setup-dev ## kill -9 of every part while a crew works, and 200 crews without a trace
	@HYPERFACTORY_CYCLES=200 .venv/bin/pytest -s tests/acceptance/test_kills.py tests/acceptance/test_cycles.py $(ARGS)

dockerd: ## start a private Docker engine (ARGS=--userns-remap maps root to nobody of yours)
	@scripts/dockerd.sh start $(ARGS)

dockerd-stop: ## stop it
	@scripts/dockerd.sh stop $(ARGS)

agent-image: ## build the agents' container image and import it into that engine
	@scripts/agent_image.sh $(ARGS)

clean: ## remove caches and the stopped stack's files; keeps .venv
	@if [ -e $(HOME_DIR)/client.json ]; then echo "cannot clean: a stack serves $(HOME_DIR); stop it first" >&2; exit 1; fi
	@rm -rf $(HOME_DIR) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
