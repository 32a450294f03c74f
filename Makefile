# Needs python3 (3.10 or newer) and make. Everything goes into .venv, and the second time is quick.

PYTHON ?= python3
BIN := .venv/bin
PYTEST_ARGS ?= -n 2

.PHONY: help demo test lint bench clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo    install, train on real images from real weights, evaluate, predict'
	@echo 'make test    install, run the tests            (PYTEST_ARGS="-k name" for some of them)'
	@echo 'make lint    install, check style and types    (nothing is changed)'
	@echo 'make bench   install, measure against the peers'
	@echo 'make clean   remove .venv and what the tools cached'

DEMO := runs/demo

demo: .venv/.demo
	rm -rf $(DEMO)
	$(BIN)/vitrail finetune mnist-5k --weights saliency-s14 --method probe --resolution 112 --out $(DEMO)
	$(BIN)/python -c 'from vitrail.data.builtin import materialise; \
	    print(*sorted(materialise("mnist-5k").glob("val/*/*.png"))[::125], sep="\0", end="")' | \
	    xargs -0 $(BIN)/vitrail predict $(DEMO)

test: .venv/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: .venv/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

# A stamp is touched last, so an interrupted installation is taken up again.
.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Vitrail needs Python 3.10 or newer: install it, or name one with make PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments: install its venv module (python3-venv on Debian and Ubuntu)." >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.demo: pyproject.toml | .venv/.made
	$(BIN)/python -m pip install --editable '.[demo]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/.made
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch .venv/.demo $@
