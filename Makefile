# `make demo` and `make test` do all the set-up themselves. PYTHON is any Python from 3.11 on.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
CLIP := data/clips/bell.mp4
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check lab pages bench clean

demo: $(STAMP)
	$(BIN)/vlt probe $(CLIP) --ask "What do you see, and what do you hear?"

test: $(STAMP) check
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lab: $(STAMP)
	cd notebooks && ../$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) 01_frames_and_sound.ipynb

pages: $(STAMP)
	$(BIN)/python notebooks/pages.py

bench: $(STAMP)
	$(BIN)/python benchmarks

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vlt needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Name one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
