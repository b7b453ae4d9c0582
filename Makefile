PYTHON ?= python3
CASE ?=
FAULT ?=

.DEFAULT_GOAL := help
.PHONY: help demo test check bench faults fuzz services lock

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' Makefile

demo: .venv/.installed ## Run the example project, with nothing but Python
	@.venv/bin/python flows/demo.py

test: check services ## Check, then run every test; starts RabbitMQ and PostgreSQL by itself
	@.venv/bin/pytest -q -n auto --maxprocesses 4 --dist worksteal

check: .venv/.installed ## Lint and type-check
	@.venv/bin/ruff check
	@.venv/bin/mypy

bench: services ## Measure, beside other systems; CASE="name …" for some of it
	@.venv/bin/python -m benchmarks $(CASE)

faults: services ## Break everything, many times over, and print the table; FAULT=name for some of it
	@.venv/bin/python tests/faults/table.py "$(FAULT)"

fuzz: .venv/.installed ## Validate ten thousand flow files that went wrong, and name the slowest
	@FLOWRUN_FUZZ_CASES=10000 .venv/bin/pytest -q -rP -n auto --maxprocesses 4 tests/fuzz

services: .venv/.installed ## As root on Debian, install the RabbitMQ and PostgreSQL that the tests start
	@.venv/bin/python tests/install_services.py

lock: ## Write requirements.lock anew from pyproject.toml
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	$(PYTHON) -m venv "$$folder" && "$$folder/bin/pip" install -q uv && \
	"$$folder/bin/uv" pip compile -q --upgrade --universal --python-version 3.11 --generate-hashes \
		--extra fast --group dev --custom-compile-command "make lock" -o requirements.lock pyproject.toml

.venv/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "flowrun needs Python 3.11 or newer, and $(PYTHON) is none; try: make PYTHON=python3.13" >&2; exit 1; }
	@echo "Installing into .venv ..."
	@$(PYTHON) -m venv .venv
	@.venv/bin/pip install -q -r requirements.lock
	@.venv/bin/pip install -q --no-deps -e .
	@touch $@
