# Two commands: `make demo` and `make test`. Each makes .venv where there is none and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test conformance browser lint clean gpu gpu-wheels

demo: $(VENV)/.installed-demo
	@rm -rf $(DEMO)
	$(BIN)/diffsim train pendulum --out $(DEMO)
	$(BIN)/diffsim evaluate $(DEMO) --gym Pendulum-v1 --episodes 100 --seed 1000
	$(BIN)/diffsim plot $(DEMO)
	@echo
	@echo "The demo wrote"
	@echo "  $(DEMO)/run.h5      configuration, history, checkpoints and evaluations of the run"
	@echo "  $(DEMO)/curves.png  its learning curves"
	@echo "Try next:  $(BIN)/diffsim show $(DEMO)"

test: $(VENV)/.installed-test browser lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8

# Every simulator on every back end: about ten minutes of compiling.
conformance: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# The animations are tested in a real one.
browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
	  root=; [ "$$(id -u)" = 0 ] || root=sudo; \
	  echo "installing chromium"; \
	  $$root apt-get update -qq && $$root apt-get install -y -qq chromium >/dev/null; } || \
	  echo "no chromium: the tests that need a browser will be skipped" >&2

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist

$(VENV)/.installed-demo: pyproject.toml | $(BIN)/pip
	@echo "installing diffsim into $(VENV) (the first time takes some minutes)"
	$(BIN)/pip install --quiet --editable '.[gym,plot]'
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/pip
	@echo "installing diffsim and its test tools into $(VENV) (the first time takes some minutes)"
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

# A bare Debian or Ubuntu has a Python that cannot make virtual environments.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "diffsim needs Python >= 3.10; name one with: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  package=$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'); \
	  root=; [ "$$(id -u)" = 0 ] || root=sudo; \
	  echo "installing $$package"; \
	  $$root apt-get update -qq && $$root apt-get install -y -qq $$package >/dev/null; } || \
	  { echo "this Python has no venv; install it, on Debian and Ubuntu with: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# On a machine with an NVIDIA GPU: its own Python and torch, and of wheels/ what these lack. Elsewhere one sentence.
gpu:
	@$(PYTHON) benchmarks/gpu.py --out benchmarks/results/gpu.json

# For a GPU machine without a network: wheels for its Python, to be copied there; WHEELS names distributions.
GPU_PYTHON := 3.12
gpu-wheels:
	@$(PYTHON) benchmarks/gpu.py --download $(WHEELS) --python-version $(GPU_PYTHON)
