# `make` lists what can be made. Everything runs in .venv, which each target makes when it is missing.

PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
PYTEST_ARGS ?=
ENGINE ?= $(shell command -v docker || command -v podman)
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' invalidator/__init__.py)

.DEFAULT_GOAL := help
.PHONY: help venv demo test check format bench dist dist-test image image-test unit-test soak lock docs clean

help:  ## List what can be made
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

venv: .venv/dev  ## Make .venv with everything that development needs

demo: .venv/demo  ## Watch a cache being kept right, on servers of its own
	@$(BIN)/invalidator demo $(DEMO_ARGS)

test: .venv/dev  ## Run the tests
	$(BIN)/pytest $(PYTEST_ARGS)

check: .venv/dev  ## Check format, lint, types, import contracts and generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tools.reference | diff - docs/reference.md
	$(BIN)/invalidator config schema | diff - docs/config.schema.json

format: .venv/dev  ## Format the code, and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/dev  ## Measure, as ratios within one run
	$(BIN)/python -m bench.start
	$(BIN)/python -m bench.rendering
	$(BIN)/python -m bench.writers
	$(BIN)/python -m bench.install
	$(BIN)/python -m bench.listeners
	$(BIN)/python -m bench.loops
	$(BIN)/python -m bench.faults
	$(BIN)/python -m bench.redis_faults
	$(BIN)/python -m bench.evictions
	$(BIN)/python -m bench.local

dist: .venv/dev  ## Build wheel and sdist, and say what the image consists of (an SBOM), into dist/
	rm -rf dist build
	$(BIN)/python -m hatchling build -d dist
	$(call environment,cyclonedx,sbom)
	$(call environment,invalidator,image)
	build/invalidator/bin/python -m pip --quiet uninstall --yes pip setuptools
	sed 's/^dynamic = \["version"\]/version = "$(VERSION)"/' pyproject.toml > build/pyproject.toml
	build/cyclonedx/bin/cyclonedx-py environment --pyproject build/pyproject.toml --mc-type application \
		--output-reproducible --output-file dist/invalidator-$(VERSION).cdx.json build/invalidator

dist-test: dist  ## Install what was built into empty environments and run it, on every Python at hand; upgrade from each release
	$(BIN)/pytest $(PYTEST_ARGS) tests/release/test_dist.py tests/release/test_upgrade.py

image:  ## Build the image, with docker or podman (ENGINE=podman)
	$(ENGINE) build $(if $(findstring podman,$(ENGINE)),--format docker) --build-arg VERSION=$(VERSION) --tag invalidator:$(VERSION) .

image-test: .venv/dev  ## Build the image and run it against real servers (takes podman, runc, debootstrap, root)
	$(BIN)/pytest -n0 $(PYTEST_ARGS) tests/release/test_image.py

unit-test: .venv/dev  ## Boot a systemd in a container and run deploy/invalidator.service under it (takes the same)
	$(BIN)/pytest -n0 $(PYTEST_ARGS) tests/release/test_unit.py

soak: .venv/dev  ## Ten minutes of changes with Redis away: memory stays bounded
	$(BIN)/python -m bench.soak

docs: .venv/dev  ## Generate docs/reference.md and docs/config.schema.json from the configuration models
	$(BIN)/python -m tools.reference > docs/reference.md
	$(BIN)/invalidator config schema > docs/config.schema.json

lock: .venv/dev  ## Pin requirements/*.txt anew, with hashes
	$(BIN)/python -m pip install --quiet uv
	$(call pin,build,--group pyproject.toml:build)
	$(call pin,image,pyproject.toml)
	$(call pin,sbom,--group pyproject.toml:sbom)
	$(call pin,demo,--group build --extra demo --extra fast pyproject.toml)
	$(call pin,dev,--group build --extra dev pyproject.toml)

clean:  ## Remove .venv and what tools leave behind
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@[ -n "$(PYTHON)" ] || { echo "make: no Python 3.11 or newer with venv found; name one: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/demo: requirements/demo.txt pyproject.toml | .venv/bin/python
	$(call install,demo)
	@touch $@

.venv/dev: requirements/dev.txt pyproject.toml | .venv/bin/python
	$(call install,dev)
	@touch $@ .venv/demo

# Bytecode is compiled here because the environment may forbid Python to write it later.
define install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$(1).txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q invalidator $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])') || true
endef

define environment
	$(BIN)/python -m venv build/$(1)
	build/$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/$(2).txt
endef

pin = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	--no-annotate --no-emit-package invalidator -o requirements/$(1).txt $(2)
