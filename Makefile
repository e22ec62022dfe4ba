# Needs Python 3.11 to 3.13 (as the pinned versions do) and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that share the tests out; 0 runs them here, one after the other.
TEST_WORKERS ?= 3
PYTHONS ?= 3.11 3.12 3.13
FAST := not long and not ray and not daemon and not s3 and not model and not browser
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
export DAGSTER_HOME := $(CURDIR)/.dagster_home
export HF_HUB_OFFLINE ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export PYTHONUNBUFFERED := 1
# The tests and Ray start hundreds of processes that import this project: bytecode is kept for them.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo backfill choose-model digits digits-changed texts ui test test-fast test-pythons test-faults test-crashes test-corpus test-cluster test-soak test-gpu test-stores test-s3 test-vllm bench-language fuzz audit lint format docs pictures bench clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first and by its pinned version: a range could bring in the newest CUDA build.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo 'Installing into $(VENV) …'
	@$(PIP) install --no-compile -c constraints.txt -e '.[example]'
	@touch $@

$(VENV)/.ui: $(VENV)/.demo
	@echo 'Installing the UI into $(VENV) …'
	@$(PIP) install --no-compile -c constraints.txt -e '.[example,webserver]'
	@touch $@

$(VENV)/.texts: $(VENV)/.demo
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[example-texts]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.demo $(VENV)/.ui $(VENV)/.texts $@

$(DAGSTER_HOME)/dagster.yaml:
	@mkdir -p $(DAGSTER_HOME) && printf 'telemetry:\n  enabled: false\nnux:\n  enabled: false\n' > $@

demo: $(VENV)/.demo $(DAGSTER_HOME)/dagster.yaml  ## Forecast real series and embed pictures through real Dagster runs
	@$(BIN)/python -m example_project.demo digits

backfill: $(VENV)/.demo $(DAGSTER_HOME)/dagster.yaml  ## Backfill the year as one run, with a closing table
	$(BIN)/python -m example_project.backfill

choose-model: $(VENV)/.demo  ## Measure candidates for the forecaster on days before the demo's
	@$(BIN)/python -m example_project.choose_model

digits: $(VENV)/.demo $(DAGSTER_HOME)/dagster.yaml  ## Train a small network and embed 1,797 pictures with it
	$(BIN)/python -m example_project.embed digits

digits-changed: $(VENV)/.demo $(DAGSTER_HOME)/dagster.yaml  ## Replace 1 % of the pictures and embed the catalogue again
	$(BIN)/python -m example_project.embed digits 100

texts: $(VENV)/.texts $(DAGSTER_HOME)/dagster.yaml  ## Embed this library's documentation (installs torch)
	$(BIN)/python -m example_project.embed pages

ui: $(VENV)/.ui $(DAGSTER_HOME)/dagster.yaml  ## The Dagster UI on the example project
	$(BIN)/dagster dev -w workspace.yaml

# Much of a test's time is spent waiting for Ray or a daemon, so there is one process more than cores.
test: $(VENV)/.dev  ## The test suite, in three processes (TEST_WORKERS=0: in one)
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder -m 'not long and not gpu'

test-long: $(VENV)/.dev  ## The tests that "make test" leaves out for their length
	$(BIN)/python -m pytest -n 2 --dist load -m long

test-fast: $(VENV)/.dev  ## The tests that need no cluster, daemon or model library
	$(BIN)/python -m pytest -m '$(FAST)'

# The fast tests and the demo need no torch, so each interpreter gets a small environment of its own.
test-pythons:  ## The fast tests and the demo on each Python from 3.11 to 3.13 that is found
	@set -e; proven=; for v in $(PYTHONS); do \
		python=$$(python$$v -c 'import sys; print(sys.executable)' 2>/dev/null \
			|| ls $$HOME/.pyenv/versions/$$v.*/bin/python 2>/dev/null | tail -n 1); \
		if [ -z "$$python" ]; then echo "Python $$v: not found, not tested"; continue; fi; \
		echo "Python $$v: $$python"; \
		"$$python" -m venv .venv-$$v; \
		.venv-$$v/bin/python -m pip --disable-pip-version-check -q install -c constraints.txt -e '.[test-fast]'; \
		.venv-$$v/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m '$(FAST)'; \
		DAGSTER_HOME=$$(mktemp -d) .venv-$$v/bin/python -m example_project.demo; \
		proven="$$proven $$v"; \
	done; echo "Passed on Python:$$proven"; [ -n "$$proven" ]

test-gpu: $(VENV)/.dev  ## The backends on a GPU of this machine, and its memory that runs out (a minute)
	$(BIN)/python -m pytest tests/backends/test_on_a_gpu.py

test-faults: $(VENV)/.dev  ## Hundreds of jobs with random faults of the object store (minutes)
	SHEAF_FAULT_SEEDS=300 $(BIN)/python -m pytest tests/batch/test_s3_jobs.py -k random_faults_end

test-crashes: $(VENV)/.dev  ## 60 processes killed at random moments (a quarter of an hour)
	SHEAF_KILLS=60 $(BIN)/python -m pytest tests/batch/test_crashes.py tests/batch/worker/test_batch_timeout.py \
		tests/batch/test_stopping.py tests/batch/test_two_jobs.py tests/batch/worker/test_poison_rows.py

test-corpus: $(VENV)/.dev  ## The bad files, the huge ones too, with their memory measured (minutes)
	SHEAF_CORPUS=1 $(BIN)/python -m pytest tests/batch/test_corpus.py tests/batch/test_bad_places.py

test-cluster: $(VENV)/.dev  ## Every way to run on real Ray clusters, with and without a token (minutes)
	SHEAF_CLUSTER_TESTS=1 $(BIN)/python -m pytest tests/definitions/test_on_a_cluster.py tests/batch/ray/test_nodes.py tests/batch/ray/test_autoscaler.py

test-soak: $(VENV)/.dev  ## Thousands of small jobs in one process, for minutes: does anything grow?
	SHEAF_SOAK_SECONDS=240 $(BIN)/python -m pytest tests/batch/test_soak.py

$(VENV)-vllm/.done: tests/vllm_environment.py constraints.txt
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip --disable-pip-version-check -q install --upgrade packaging pip
	$(VENV)-vllm/bin/python tests/vllm_environment.py
	@touch $@

test-vllm: $(VENV)-vllm/.done  ## vLLM itself on this machine's CPUs, in .venv-vllm (a quarter of an hour)
	$(VENV)-vllm/bin/python -m pytest tests/backends/test_vllm.py tests/backends/test_openai_endpoint.py \
		tests/backends/test_openai_endpoint_jobs.py

$(VENV)-stores/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-stores
	$(VENV)-stores/bin/python -m pip --disable-pip-version-check -q install -c constraints.txt -e '.[test-stores]'
	npm install --prefix $(VENV)-stores --no-audit --no-fund azurite@3.37.0
	@touch $@

test-stores: $(VENV)-stores/.done  ## Google's and Azure's stores as emulators, in .venv-stores (needs npm; minutes)
	PATH="$(CURDIR)/$(VENV)-stores/node_modules/.bin:$$PATH" SHEAF_STORES=1 \
		$(VENV)-stores/bin/python -m pytest tests/storage -k "gcs or azure or clients or adlfs"

$(VENV)-swift/.done:
	$(PYTHON) -m venv $(VENV)-swift
	$(VENV)-swift/bin/python -m pip --disable-pip-version-check -q install swift==2.38.3
	@touch $@

test-s3: $(VENV)/.dev $(VENV)-swift/.done  ## The tests of S3 on OpenStack Swift, which enforces what real stores do (minutes)
	SHEAF_SWIFT=$(CURDIR)/$(VENV)-swift/bin $(BIN)/python -m pytest -n 2 --dist loadfile -m s3

fuzz: $(VENV)/.dev  ## Feed random bytes to everything that reads a source, for a minute (atheris)
	$(BIN)/python -m tests.fuzz -max_total_time=60

audit: $(VENV)/.dev  ## Known vulnerabilities of the pinned dependencies (asks PyPI)
	$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r constraints.txt

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev  ## Format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev  ## The documentation as a site, in site/
	$(BIN)/python -m mkdocs build --strict

pictures: $(VENV)/.dev  ## The pictures of the docs, from a browser on the example
	SHEAF_SCREENSHOTS=$(CURDIR)/docs/images $(BIN)/python -m pytest tests/browser/test_ui.py tests/browser/test_pictures.py

bench-language: $(VENV)-vllm/.done  ## Chats through vLLM against its own batch run, and a server against a loop
	$(VENV)-vllm/bin/python -m benchmarks.language

bench: $(VENV)/.dev  ## Benchmarks against the peers, printed and written to benchmarks/results
	$(BIN)/python -m benchmarks

clean:  ## Remove what the targets made
	rm -rf $(VENV) .venv-* .dagster_home data site .pytest_cache .ruff_cache .mypy_cache
