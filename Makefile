# make setup | demo | test | check | docs | bench | test-full; each makes .venv by itself, once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full bench check docs lint types fast s3-server

PY := .venv/bin/python
PYTEST = PATH="$(CURDIR)/.venv/bin:$$PATH" OMP_NUM_THREADS=1 $(PY) -m pytest $(PYTEST_ARGS)
# Files are shared out among as many processes as there are cores, four at most.
PARALLEL = -n auto --maxprocesses 4 --dist loadfile

# The stamp bears a digest of the pins and is written last: an interrupted install leaves none, and new pins
# ask for another.
PINS := $(shell cat requirements.txt requirements-dev.txt | sha256sum | cut -c1-16)
STAMP := .venv/.installed-$(PINS)
SWIFT_STAMP := .swift/.installed-$(shell sha256sum < requirements-s3-server.txt | cut -c1-16)
DOCS_STAMP := .docs-venv/.installed-$(shell sha256sum < requirements-docs.txt | cut -c1-16)

help:
	@echo "make setup      .venv with everything in it, and the sample data of the demo"
	@echo "make demo       real Sentinel pairs -> shards -> training, killed and resumed -> report.html"
	@echo "make check      format, lint, types, fast tests: what to run before a commit"
	@echo "make test       the suite as CI runs it"
	@echo "make test-full  the suite and the long matrices"
	@echo "make docs       the documentation as a site, site/index.html; a broken link fails"
	@echo "make bench      measure the stream, the build, the model and the engine, into docs/benchmarks.md"

$(STAMP):
	@python="$$(bash .ci/find-python)"; \
	rm -f .venv/.installed-*; \
	if ! { $(PY) -c 'import sys; assert (3, 11) <= sys.version_info < (3, 13)' && $(PY) -m pip --version; } >/dev/null 2>&1; then \
	    echo "making .venv with $$("$$python" --version)"; "$$python" -m venv --clear .venv; \
	fi
	$(PY) -m pip install --disable-pip-version-check --quiet -r requirements-dev.txt
	@touch $@

# An S3 server for the tests, in an environment of its own: it wants other versions than we do.
$(SWIFT_STAMP):
	@python="$$(bash .ci/find-python)"; \
	rm -rf .swift; "$$python" -m venv .swift
	.swift/bin/python -m pip install --disable-pip-version-check --quiet -r requirements-s3-server.txt
	@touch $@

s3-server: $(SWIFT_STAMP)

# What makes the site, in an environment of its own: nothing else needs it.
$(DOCS_STAMP):
	@python="$$(bash .ci/find-python)"; \
	rm -rf .docs-venv; "$$python" -m venv .docs-venv
	.docs-venv/bin/python -m pip install --disable-pip-version-check --quiet -r requirements-docs.txt
	@touch $@

docs: $(STAMP) $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 .docs-venv/bin/mkdocs build --strict --quiet

setup: $(STAMP)
	@$(PY) -m pipeline.demo --fetch-only

demo: setup
	$(PY) -m pipeline.demo

test: setup
	@$(MAKE) --no-print-directory s3-server || echo "without an S3 server: its tests will be skipped" >&2
	$(PYTEST) $(PARALLEL) -m "not slow"

test-full: setup s3-server
	$(PYTEST) $(PARALLEL)

bench: setup
	for part in local first-batch s3; do $(PY) -m benchmarks.stream --part $$part --into docs/benchmarks.md || exit; done
	$(PY) -m benchmarks.build --into docs/benchmarks.md
	$(PY) -m benchmarks.model --into docs/benchmarks.md
	$(PY) -m benchmarks.engine --into docs/benchmarks.md

check: lint types fast

lint: $(STAMP)
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .

types: $(STAMP)
	.venv/bin/mypy

fast: $(STAMP)
	$(PYTEST) $(PARALLEL) tests/unit -m "not slow and not dist and not chaos and not s3 and not cluster and not gpu"
