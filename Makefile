# Everything a newcomer needs: `make demo` runs the whole method on data it makes itself, `make test` checks it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast lint docs clean

demo: .venv/installed
	$(BIN)/python tools/demo.py

test: .venv/installed-dev lint
	$(BIN)/python -m pytest

test-fast: .venv/installed-dev lint
	$(BIN)/python -m pytest -m "not slow"

docs: .venv/installed-dev
	$(BIN)/python tools/cli_reference.py

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

.venv/installed: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

.venv/installed-dev: $(wildcard requirements*.txt)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@ .venv/installed

clean:
	rm -rf .venv demo_output
