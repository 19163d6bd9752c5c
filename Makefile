# Every target sets itself up in .venv and is safe to repeat.
PYTHON ?= python3
PORT ?= 8501
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch; where this index cannot be reached pip says so and goes on with the others.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
HAS_GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
EXTRA := $(if $(HAS_GPU),gpu,)
TEST_EXTRA := $(if $(HAS_GPU),dev$(comma)gpu,dev)
comma := ,

.PHONY: app demo check format test test-slow chromium clean

app: $(VENV)/.app
	@PORT=$(PORT) $(BIN)/workbench app

demo: $(VENV)/.app
	@$(BIN)/workbench run --preset pocket

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: check chromium
	$(BIN)/python -m pytest -q -m "not slow and not gpu"

test-slow: $(VENV)/.test
	$(BIN)/python -m pytest -q -m slow || [ $$? -eq 5 ]

# The browser tests use the system's Chromium and skip, saying so, where there is none.
chromium:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || \
	  { command -v apt-get >/dev/null && SUDO="$$([ $$(id -u) = 0 ] || echo 'sudo -n')" && \
	    $$SUDO apt-get update -qq >/dev/null && \
	    $$SUDO apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "no Chromium: the browser tests will be skipped"

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
ifneq ($(HAS_GPU),yes)
	$(BIN)/pip install -qq --retries 1 --extra-index-url $(TORCH_CPU_INDEX) "torch>=2.6,<2.14"
endif
	@touch $@

$(VENV)/.app: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -e ".$(if $(EXTRA),[$(EXTRA)],)"
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -e ".[$(TEST_EXTRA)]"
	@touch $@ $(VENV)/.app

clean:
	rm -rf $(VENV) build *.egg-info
