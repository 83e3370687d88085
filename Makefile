# Two commands on a fresh machine with Python 3.11 and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
DEMO_VENV := .venvs/demo
BIN := $(VENV)/bin
GRPC := edgeserve/serve/grpc
PIP := -m pip --disable-pip-version-check install --quiet

.PHONY: help demo test test-slow check lint types layers unit reference protos clean

help:  ## Show these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(DEMO_VENV)/.installed  ## Install, then convert, bench, gate, serve and query the embedded model
	$(DEMO_VENV)/bin/edgeserve demo

test: check unit  ## What CI runs first: lint, types, layers, tests

check: lint types layers  ## Everything but the tests

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell README.md CHANGELOG.md docs edgeserve converters targets examples

types: $(VENV)/.installed
	$(BIN)/mypy

layers: $(VENV)/.installed
	$(BIN)/lint-imports

unit: $(VENV)/.installed
	$(BIN)/pytest

test-slow: $(VENV)/.installed  ## Tool environments, device packages, the ImageNet example, soaks
	$(BIN)/pytest -m slow

reference: $(VENV)/.installed  ## Write docs/cli-reference.md from the commands' own help
	$(BIN)/python docs/reference.py > docs/cli-reference.md

protos: $(VENV)/.installed  ## Generate what is generated from inference.proto
	$(BIN)/python -m grpc_tools.protoc -I $(GRPC) --descriptor_set_out=$(GRPC)/messages.binpb \
		--pyi_out=$(GRPC) inference.proto
	mv $(GRPC)/inference_pb2.pyi $(GRPC)/messages.pyi

clean:  ## Remove environments and caches
	rm -rf $(VENV) .venvs build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: edgeserve needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 3; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "error: Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 3; }
	$(BIN)/python $(PIP) -e '.[dev]'
	@touch $@

$(DEMO_VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: edgeserve needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 3; }
	@$(PYTHON) -m venv $(DEMO_VENV) \
		|| { echo "error: Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 3; }
	$(DEMO_VENV)/bin/python $(PIP) '.[convert,openvino]'
	@touch $@
