# FastCap's commands; `make` lists them. Every target sets up what it needs, and no more, so each works alone, first, and
# again.
#
#   make train ARGS="data=flickr8k trainer.max_epochs=3"      ARGS goes to the program as it stands

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
FASTCAP := $(PY) -m fastcap.cli
# One .venv in stages, a stamp each: what captions with an exported model, the page's packages, torch and all that trains,
# the tools that test.
LIGHT := $(VENV)/.fastcap-light
DEMO := $(VENV)/.fastcap-demo
TRAIN := $(VENV)/.fastcap-train
DEV := $(VENV)/.fastcap-dev
# Interpreters to create .venv with; the first that is Python 3.11 or newer is taken.
PYTHON ?= python3.11 python3 python
# Where to take torch from: https://download.pytorch.org/whl/cpu has builds without CUDA (0.2 GB in the place of 4).
TORCH_INDEX ?=

ARGS ?=
# Through the environment, so that a path may hold spaces and quotes.
export PHOTO ?=
export RESULTS ?=
export REFERENCES ?=
# Run folders, or folders of them, with blanks between.
RUNS ?=
SWEEP ?= data.source.num_train=1280 data.source.num_val=64 trainer.max_epochs=1 refinement.num_steps=1,2,4

.PHONY: help setup data train eval caption export demo score distill pretrain bench sweep results dashboard \
	test test-slow lint types check format clean

help: ## List the targets
	@echo 'make TARGET [ARGS="..."]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

setup: $(DEV) ## Install all of FastCap into .venv; TORCH_INDEX=https://download.pytorch.org/whl/cpu spares CUDA's 4 GB

# A stamp comes last, so an interrupted set-up starts over here: a broken .venv is made anew, and a package that pip
# had not finished (it writes RECORD last) is forgotten, so that pip installs it again.
$(LIGHT): pyproject.toml constraints.txt
	@if ! $(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  base=; \
	  for python in $(PYTHON); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then base=$$python; break; fi; \
	  done; \
	  if [ -z "$$base" ]; then \
	    echo 'FastCap needs Python 3.11 or newer; none of these is: $(PYTHON). Name one: make setup PYTHON=/path/to/python' >&2; \
	    exit 1; \
	  fi; \
	  echo "Creating $(VENV) with $$base"; \
	  "$$base" -m venv --clear $(VENV) || { \
	    echo 'No ensurepip here; taking pip from the interpreter instead' >&2; \
	    "$$base" -m venv --clear --without-pip $(VENV); \
	    "$$base" -m pip --python $(PY) install pip; \
	  }; \
	fi
	@find $(VENV)/lib -maxdepth 3 -type d \
	  \( -name '~*' -o -name '*.dist-info' ! -exec test -e '{}/RECORD' \; \) -prune -exec rm -rf '{}' +
	$(PY) -m pip install -c constraints.txt -e .
	@touch $@

$(DEMO): $(LIGHT)
	$(PY) -m pip install -c constraints.txt -e '.[demo]'
	@touch $@

$(TRAIN): $(LIGHT)
	$(if $(TORCH_INDEX),$(PY) -m pip install -c constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	$(PY) -m pip install -c constraints.txt -e '.[train]'
	@touch $@

$(DEV): $(LIGHT)
	$(if $(TORCH_INDEX),$(PY) -m pip install -c constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	$(PY) -m pip install -c constraints.txt -e '.[dev]'
	@touch $(DEMO) $(TRAIN) $@

data: $(TRAIN) ## Fetch MS COCO and Karpathy's split (20 GB), going on where it stopped: ARGS="coco --root DIR --year 2017"
	$(FASTCAP) data $(if $(ARGS),$(ARGS),coco)

train: $(TRAIN) ## Train: ARGS are Hydra overrides
	$(FASTCAP) train $(ARGS)

eval: $(TRAIN) ## Evaluate: the newest run's checkpoint, or ARGS="ckpt=PATH"
	$(FASTCAP) eval $(ARGS)

caption: $(LIGHT) ## Caption a photograph or a folder: PHOTO=path
	$(FASTCAP) caption $(if $(PHOTO),"$$PHOTO") $(ARGS)

export: $(TRAIN) ## Export the newest checkpoint, or ARGS="PATH --out DIR", to ONNX
	$(FASTCAP) export $(ARGS)

demo: $(DEMO) ## Try a captioner in the browser: the newest run's, or ARGS="--model PATH --port 8000"
	$(FASTCAP) demo $(ARGS)

score: $(TRAIN) ## Score anybody's captions: RESULTS=captions.json REFERENCES=annotations.json, both in COCO's format
	$(FASTCAP) score $(if $(RESULTS),"$$RESULTS") $(if $(REFERENCES),"$$REFERENCES") $(ARGS)

distill: $(TRAIN) ## Teach a backbone what a packaged ImageNet encoder sees: ARGS="folder=DIR"
	$(FASTCAP) distill $(ARGS)

pretrain: $(TRAIN) ## Train a backbone on class folders: ARGS="data_dir=DIR"
	$(FASTCAP) pretrain $(ARGS)

bench: $(DEV) ## Measure: ARGS="captioners --models PATH", "decoding --models PATH", "backbone --sizes 224 --batches 1"
	$(FASTCAP) bench $(if $(ARGS),$(ARGS),backbone)

results: $(TRAIN) ## Write runs into experiments/results.csv, and the tables of Markdown pages anew: RUNS="runs/a"
	$(FASTCAP) results $(RUNS) $(ARGS)

sweep: $(TRAIN) ## Train once for each combination: ARGS="sweep_name=lr optim.optimizer.lr=1e-3,3e-4", or a small default (SWEEP)
	$(FASTCAP) train -m $(if $(ARGS),$(ARGS),$(SWEEP))

dashboard: $(DEV) ## Build the W&B dashboard; ARGS="--print" shows its definition without an account
	$(FASTCAP) dashboard $(ARGS)

test: $(DEV) ## Run the tests, less the slow ones: ARGS="-k scan"
	$(PY) -m pytest -n 2 $(ARGS)

test-slow: $(DEV) ## Run the slow tests alone
	$(PY) -m pytest -n 2 -m slow $(ARGS) || { code=$$?; [ $$code -eq 5 ] || exit $$code; echo 'No slow test was selected.'; }

lint: $(DEV) ## Check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(DEV) ## Check types
	$(PY) -m mypy

check: lint types ## Everything short of the tests: lint, types, layering
	$(PY) -m pytest tests/test_layering.py

format: $(DEV) ## Format, and fix what can be fixed by itself
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

clean: ## Remove tools' caches and build leftovers; never runs, data or .venv
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find fastcap tests -type d -name __pycache__ -prune -exec rm -rf {} +
