# FastCap's commands; `make` lists them. Every target sets up what it needs, so each works alone, first, and again.
#
#   make train ARGS="data=flickr8k trainer.max_epochs=3"      ARGS goes to the program as it stands

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.fastcap-setup
# Interpreters to create .venv with; the first that is Python 3.11 or newer is taken.
PYTHON ?= python3.11 python3 python

ARGS ?=
# Through the environment, so that a path may hold spaces and quotes.
export PHOTO ?=
export RESULTS ?=
export REFERENCES ?=
# Run folders, or folders of them, with blanks between.
RUNS ?=
SWEEP ?= experiment=scenes_smoke refinement.num_steps=1,2,4

.PHONY: help setup data train eval caption export demo score report distill pretrain bench sweep results dashboard \
	test test-slow lint types check format clean

help: ## List the targets
	@echo 'make TARGET [ARGS="..."]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Create .venv and install FastCap into it; instant when done

# The stamp comes last, so an interrupted set-up starts over here: a broken .venv is made anew, and a package that pip
# had not finished (it writes RECORD last) is forgotten, so that pip installs it again.
$(STAMP): pyproject.toml constraints.txt
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
	$(PY) -m pip install -c constraints.txt -e '.[dev]'
	@touch $@

data: $(STAMP) ## Fetch MS COCO and Karpathy's split (20 GB), going on where it stopped: ARGS="coco --root DIR --year 2017"
	$(PY) -m fastcap.jobs.fetch $(if $(ARGS),$(ARGS),coco)

train: $(STAMP) ## Train: ARGS are Hydra overrides
	$(PY) -m fastcap.train $(ARGS)

eval: $(STAMP) ## Evaluate: the newest run's checkpoint, or ARGS="ckpt=PATH"
	$(PY) -m fastcap.eval $(ARGS)

caption: $(STAMP) ## Caption a photograph or a folder: PHOTO=path
	$(PY) -m fastcap.caption $(if $(PHOTO),"$$PHOTO") $(ARGS)

export: $(STAMP) ## Export the newest checkpoint, or ARGS="PATH --out DIR", to ONNX and OpenVINO
	$(PY) -m fastcap.export $(ARGS)

demo: $(STAMP) ## Try a captioner in the browser: the newest run's, or ARGS="--model PATH --port 8000"
	$(PY) -m fastcap.serving.demo $(ARGS)

score: $(STAMP) ## Score anybody's captions: RESULTS=captions.json REFERENCES=annotations.json, both in COCO's format
	$(PY) -m fastcap.reporting.score $(if $(RESULTS),"$$RESULTS") $(if $(REFERENCES),"$$REFERENCES") $(ARGS)

report: $(STAMP) ## Compare runs in one offline page, report.html: RUNS="runs/a runs/b", or all of runs/
	$(PY) -m fastcap.reporting.compare $(RUNS) $(ARGS)

distill: $(STAMP) ## Teach a backbone what a packaged ImageNet encoder sees: ARGS="folder=DIR"
	$(PY) -m fastcap.jobs.distill $(ARGS)

pretrain: $(STAMP) ## Train a backbone on class folders: ARGS="data_dir=DIR"
	$(PY) -m fastcap.jobs.pretrain $(ARGS)

bench: $(STAMP) ## Measure: ARGS="captioners --models PATH", "decoding --models PATH", "backbone --sizes 224 --batches 1"
	$(PY) -m fastcap.tools.bench $(if $(ARGS),$(ARGS),backbone)

results: $(STAMP) ## Runs into experiments/results.csv, its rows into tables: RUNS="runs/a"; ARGS=bench.csv for the headline
	$(if $(ARGS),$(PY) -m fastcap.tools.bench table $(ARGS) --readme README.md)
	$(PY) -m fastcap.reporting.results $(RUNS)

sweep: $(STAMP) ## Train once for each combination: ARGS="sweep_name=lr optim.optimizer.lr=1e-3,3e-4", or a small default (SWEEP)
	$(PY) -m fastcap.train -m $(if $(ARGS),$(ARGS),$(SWEEP))

dashboard: $(STAMP) ## Build the W&B dashboard; ARGS="--print" shows its definition without an account
	$(PY) -m fastcap.tools.dashboard $(ARGS)

test: $(STAMP) ## Run the tests, less the slow ones: ARGS="-k scan"
	$(PY) -m pytest $(ARGS)

test-slow: $(STAMP) ## Run the slow tests alone
	$(PY) -m pytest -m slow $(ARGS) || { code=$$?; [ $$code -eq 5 ] || exit $$code; echo 'No slow test was selected.'; }

lint: $(STAMP) ## Check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP) ## Check types
	$(PY) -m mypy

check: lint types ## Everything short of the tests: lint, types, layering
	$(PY) -m pytest tests/test_layering.py

format: $(STAMP) ## Format, and fix what can be fixed by itself
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

clean: ## Remove tools' caches and build leftovers; never runs, data or .venv
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
	find fastcap tests -type d -name __pycache__ -prune -exec rm -rf {} +
