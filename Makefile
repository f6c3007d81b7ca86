# `make demo` and `make test` need Python >= 3.10 and make, nothing else.
PYTHON ?= python3
SHARED ?= ../shared
SECONDS ?= 60
VENV ?= .venv
LOWEST ?= .venv-lowest
AUDIT ?= .venv-audit
SURVEY ?= .venv-survey
BIN := $(VENV)/bin
# Small networks gain nothing from more threads; tests run in parallel processes.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast check format docs dist bench fuzz evidence ablation survey moved licences audit test-lowest clean

help: ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

demo: $(VENV)/.demo ## Set up, explain the bundled photograph with the bundled network, print where the pictures are.
	$(BIN)/icam explain --out demo-out

test: check dist ## Set up, run all checks and tests.
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || echo 'No Chromium found: tests in a browser may be skipped (apt-get install chromium, or $(BIN)/playwright install chromium).'
	$(BIN)/python -m pytest -n auto --dist worksteal

# The arithmetic, the plan and the methods; a test that trains or builds large networks is marked slow.
test-fast: $(VENV)/.dev ## Run the tests of the core, under two minutes on two cores.
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not slow' $(addprefix tests/,plan maps core methods targets query)

check: $(VENV)/.dev ## Lint, formatting, types, and which package may import which.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev ## Put the code into its canonical form.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

docs: $(VENV)/.docs ## Build the documentation into site/, to be opened at site/index.html; a warning is an error.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/.dev ## Print taps, completeness errors, the time and memory of a call and of the metrics, and how long the start takes.
	$(BIN)/python benchmarks/overview.py
	$(BIN)/python benchmarks/overview.py --batch 8 --networks resnet50 vgg16 mobilenet_v2 efficientnet-lite0 efficientnet_b0
	$(BIN)/python benchmarks/forms.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/startup.py

dist: $(VENV)/.dev ## Build wheel and sdist into dist/, check what they say of themselves, and try the wheel in an environment of its own.
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python tests/smoke.py dist/*.whl

fuzz: $(VENV)/.fuzz ## Try damaged files, odd names and requests, SECONDS=60 for each of nine surfaces; bugs go to fuzz-out/.
	$(BIN)/python fuzz/run.py --seconds $(SECONDS)

evidence: $(VENV)/.dev ## The tables of docs/evidence.md from SHARED=../shared, in some hours; QUICK=1 in five minutes.
	$(BIN)/python benchmarks/evidence.py $(SHARED) $(if $(QUICK),--quick --out evidence-quick)

ablation: $(VENV)/.dev ## The tables of docs/ablation.md from SHARED=../shared, in half an hour.
	$(BIN)/python benchmarks/ablation.py develop $(SHARED) --limit 34
	$(BIN)/python benchmarks/ablation.py verify $(SHARED) --limit 34

survey: $(if $(FIELDS),$(SURVEY)/.fields,$(VENV)/.dev) ## Explain every network of torchvision and every family of timm, FIELDS=1 networks of other fields; OPTIONS=--help says more.
	PYTHONPATH=benchmarks $(if $(FIELDS),$(SURVEY)/bin/python -m survey.places,$(BIN)/python -m survey) $(OPTIONS)

# Some gigabytes of libraries that nothing else needs, in the releases that docs/survey.md names.
$(SURVEY)/.fields: benchmarks/survey/fields.txt pyproject.toml
	$(PYTHON) -m venv $(SURVEY)
	$(SURVEY)/bin/python -m pip install --quiet --requirement $< --editable .
	touch $@

moved: $(VENV)/.dev ## Explain 2,000 networks that move what they look at, and judge where the maps lie; OPTIONS=--help says more.
	$(BIN)/python -m benchmarks.moved $(OPTIONS)

licences: $(VENV)/.dev $(VENV)/.fuzz ## Write the tables of docs/project/licences.md; a licence that is not accepted is an error.
	$(BIN)/python docs/project/licences.py --write

# Packages are checked by name and version, in an environment of their own; one that cannot be looked up is an error too.
audit: ## Look up known vulnerabilities of the newest releases that the extra `all` brings.
	rm -rf $(AUDIT)
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --editable '.[all]'
	$(AUDIT)/bin/python -m pip freeze --exclude-editable > $(AUDIT)/installed.txt
	$(AUDIT)/bin/python -m pip install --quiet 'pip-audit>=2.10'
	$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps --requirement $(AUDIT)/installed.txt

# First the lower bounds alone, which are those of direct dependencies; then all that goes with exactly these.
test-lowest: ## Run all tests with the lowest releases that pyproject.toml allows; PYTHON=python3.10.
	rm -rf $(LOWEST)
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet 'uv>=0.5'
	$(LOWEST)/bin/uv pip compile --quiet --python $(LOWEST)/bin/python --no-deps --no-annotate --resolution lowest-direct --extra dev --extra peers pyproject.toml --output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --constraints $(LOWEST)/lowest.txt --editable '.[dev,peers]'
	$(LOWEST)/bin/python -m pytest -n auto --dist worksteal

clean: ## Remove the virtual environment and all that was made.
	rm -rf $(VENV) $(LOWEST) $(AUDIT) $(SURVEY) site test-output demo-out icam-out icam-evaluation ablation evidence evidence-quick fuzz-out dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One environment; each file marks an extra that is installed.
$(VENV)/.demo $(VENV)/.dev $(VENV)/.docs $(VENV)/.fuzz: $(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
