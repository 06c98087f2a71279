# `make` or `make help` lists the targets. Overridable: PYTHON (creates the environment), VENV (where it lies),
# PIP_FLAGS (passed to pip, for example to choose a CPU build of PyTorch).
PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install $(PIP_FLAGS) --constraint requirements.lock
DEMO := runs/demo-ddfp.ipynb
BUILD := _build

# What pip would install for everything, as a report in $(BUILD)/lock.json; nothing is installed. Python and system
# decide along: the lock is of those of .github/workflows/ci.yml.
define RESOLVE
@mkdir -p $(BUILD)
$(PYTHON) -m venv $(BUILD)/lock
$(BUILD)/lock/bin/python -m pip install --quiet --upgrade pip
$(BUILD)/lock/bin/python -m pip install --quiet --dry-run --ignore-installed --report $(BUILD)/lock.json '.[book,dev,timm,mask2former]'
endef

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest test-newest book lint lock lock-check bench notebooks clean
.DELETE_ON_ERROR:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z -]*:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(PY):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# The stamps make a second call skip the set-up until pyproject.toml or the lock changes.
$(VENV)/.book: pyproject.toml requirements.lock | $(PY)
	@echo "setting up $(VENV): minutes, and gigabytes where PyTorch comes with CUDA"
	$(INSTALL) --editable '.[book]'
	@touch $@

$(VENV)/.dev: pyproject.toml requirements.lock | $(PY)
	@echo "setting up $(VENV): minutes, and gigabytes where PyTorch comes with CUDA"
	$(INSTALL) --editable '.[book,dev,timm,mask2former]'
	@touch $@ $(VENV)/.book

demo: $(VENV)/.book ## train DDFP on the embedded data from its notebook, on the CPU, in minutes
	@mkdir -p $(dir $(DEMO))
	$(PY) -m papermill notebooks/ddfp.ipynb $(DEMO)
	@$(PY) -m semiseg runs latest
	@echo "executed notebook: $(DEMO)"

test: $(VENV)/.dev ## run the tests, then compare every committed notebook with a fresh execution
	@status=0; \
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto || status=1; \
	OMP_NUM_THREADS=1 SEMISEG_REUSE=1 $(PY) -m pytest -n auto --dist loadscope --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg notebooks/ || status=1; \
	exit $$status

test-lowest test-newest: test-%: ## run the tests with the oldest, or newest, dependencies that pyproject.toml allows
	@mkdir -p $(BUILD)
	$(PYTHON) -m venv $(BUILD)/$*
	$(BUILD)/$*/bin/python -m pip install --quiet uv
	$(BUILD)/$*/bin/uv pip compile --quiet --native-tls --resolution $(if $(filter lowest,$*),lowest-direct,highest) \
	  pyproject.toml --extra book --extra dev --extra timm --extra mask2former --output-file $(BUILD)/$*.txt
	$(BUILD)/$*/bin/python -m pip install --quiet $(PIP_FLAGS) --requirement $(BUILD)/$*.txt
	$(BUILD)/$*/bin/python -m pip install --quiet --no-deps --editable .
	OMP_NUM_THREADS=1 $(BUILD)/$*/bin/python -m pytest -n auto tests --ignore tests/repository

book: $(VENV)/.book ## build the book into _build/html, warnings are errors
	$(VENV)/bin/jupyter-book build . -W -n --keep-going
	@echo "book: $(BUILD)/html/index.html"

lint: $(VENV)/.dev ## check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

lock: ## resolve pyproject.toml anew and write the versions to requirements.lock
	$(RESOLVE)
	$(PYTHON) .ci/lock.py < $(BUILD)/lock.json > requirements.lock.new
	mv requirements.lock.new requirements.lock

lock-check: ## fail if requirements.lock lacks a package, or has one that nothing needs
	$(RESOLVE) --constraint requirements.lock
	$(PYTHON) .ci/lock.py < $(BUILD)/lock.json > $(BUILD)/requirements.lock
	diff -u requirements.lock $(BUILD)/requirements.lock

bench: $(VENV)/.dev ## time the training steps, the flow and the loader; JSON into _build
	@mkdir -p $(BUILD)
	set -e; for part in spine loader hosts dgcl esl wpl upc; do \
	  $(PY) tests/bench/bench_$$part.py --out $(BUILD)/bench-$$part.json; done

notebooks: $(VENV)/.book ## write the notebooks from their scripts, executed on the committed records
	$(PY) .ci/execute.py

clean: ## remove builds and caches; the environment and the runs stay
	rm -rf $(BUILD) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
