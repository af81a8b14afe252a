# Two commands: `make demo` and `make test`. Each makes .venv where there is none and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test conformance compiler browser slurm lint docs clean gpu gpu-wheels

demo: compiler $(VENV)/.installed-demo
	@rm -rf $(DEMO)
	$(BIN)/diffsim train pendulum --out $(DEMO)
	$(BIN)/diffsim evaluate $(DEMO) --gym Pendulum-v1 --episodes 100 --seed 1000
	$(BIN)/diffsim plot $(DEMO)
	@echo
	@echo "The demo wrote"
	@echo "  $(DEMO)/run.h5      configuration, history, checkpoints and evaluations of the run"
	@echo "  $(DEMO)/curves.png  its learning curves"
	@echo "Try next:  $(BIN)/diffsim show $(DEMO)"

test: compiler $(VENV)/.installed-test browser slurm lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8

# Every simulator on every back end, long runs and kills: about an hour.
conformance: compiler $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow

# Wanted, not needed: without one, demo and tests take longer.
compiler:
	@[ -n "$$CXX" ] || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
	  scripts/system_packages.sh "a C++ compiler; without one, training takes 2 to 14 times as long" g++ || \
	  echo "going on without a C++ compiler"

# The animations are tested in a real one.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  scripts/system_packages.sh "a browser; without one, the tests of animations are skipped" chromium || \
	  echo "going on without a browser"

# Suites are tested on a real one, which the tests start and stop; as root only.
slurm:
	@[ "$$(id -u)" != 0 ] || { command -v slurmctld && command -v slurmd && command -v munged; } >/dev/null || \
	  scripts/system_packages.sh "Slurm (3.5 MB); without one, the tests of suites on it are skipped" \
	    slurmctld slurmd slurm-client munge || \
	  echo "going on without Slurm"

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, into site/; a warning is an error, and nothing is loaded from the network.
docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "wrote site/index.html"

clean:
	rm -rf site $(VENV) .pytest_cache .mypy_cache .ruff_cache dist

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
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  scripts/system_packages.sh "this Python cannot make virtual environments without it" \
	    $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])') || \
	  { echo "stopped: install it, then run make again" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# On a machine with an NVIDIA GPU: its own Python and torch, and of wheels/ what these lack. Elsewhere one sentence.
gpu:
	@$(PYTHON) benchmarks/gpu.py --out benchmarks/results/gpu.json

# For a GPU machine without a network: wheels for its Python, to be copied there; WHEELS names distributions.
GPU_PYTHON := 3.12
gpu-wheels:
	@$(PYTHON) benchmarks/gpu.py --download $(WHEELS) --python-version $(GPU_PYTHON)
