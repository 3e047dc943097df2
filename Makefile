# Everything happens in a virtual environment of this folder; VENV=... names another one, PYTHON=... another Python.
VENV ?= .venv
PYTHON ?= python3

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find mlx_autoperfect plugins -type f ! -name '*.pyc')
# What an editable installation copies; a change needs a new installation.
COPIED := pyproject.toml mlx_autoperfect.pth mlx_autoperfect.start

.PHONY: help demo test lint format docs clean

help:
	@echo "make demo    stock mlx-lm and autoperfect side by side, on a small model"
	@echo "make test    the test suite"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite the sources"
	@echo "make docs    write the generated parts of the documentation again"
	@echo "make clean   remove the virtual environment and everything that was generated here"

# A development environment serves the demo as well; without one, the demo installs what users install.
demo: $(if $(wildcard $(VENV)/.installed-dev),$(VENV)/.installed-dev,$(VENV)/.installed)
	$(BIN)/mlx-autoperfect demo

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/render_settings.py
	$(BIN)/python benchmarks/render_tables.py

clean:
	rm -rf $(VENV) .demo dist build .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("mlx-autoperfect needs Python 3.11 or later" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(COPIED) $(SOURCES) | $(BIN)/python
	$(PIP) install --progress-bar on '.[cpu]'
	@touch $@

$(VENV)/.installed-dev: $(COPIED) | $(BIN)/python
	$(PIP) install --progress-bar on -e '.[cpu,dev]'
	@rm -f $(VENV)/.installed
	@touch $@
