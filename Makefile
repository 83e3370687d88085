# Two commands on a fresh machine with Python 3.11 and make: `make demo`, `make test`.
PYTHON ?= python3
PROCESSES ?= 4
VENV := .venv
DEMO_VENV := .venvs/demo
WEBGPU_VENV := .venvs/webgpu
PLUGINS_VENV := .venvs/plugins
BIN := $(VENV)/bin
WIRE := edgeserve/wire
TFSERVING := edgeserve/serve/protocols/tfserving/grpc
PIP := -m pip --disable-pip-version-check install --quiet

.PHONY: help demo test test-slow test-packages check lint types layers unit reference protos gpu-driver gpu-envs gpu-bench clean

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

# Tests side by side, more than there are cores: much of their time is spent waiting.
unit: $(VENV)/.installed
	$(BIN)/pytest -n $(PROCESSES) --dist worksteal

# Whole files side by side: most share an environment that is made for them.
test-slow: $(VENV)/.installed  ## Tool environments, device packages, the ImageNet example, soaks
	@$(MAKE) --no-print-directory -j2 gpu-envs
	$(BIN)/pytest -m slow -n 3 --dist loadfile

reference: $(VENV)/.installed  ## Write what docs/ has of the commands' help, of the HTTP routes and of the settings
	$(BIN)/python docs/reference.py > docs/cli-reference.md
	$(BIN)/python docs/routes.py
	$(BIN)/python docs/settings.py

protos: $(VENV)/.installed  ## Generate what is generated from inference.proto
	$(BIN)/python -m grpc_tools.protoc -I $(WIRE) --descriptor_set_out=$(WIRE)/messages.binpb \
		--pyi_out=$(WIRE) inference.proto
	mv $(WIRE)/inference_pb2.pyi $(WIRE)/messages.pyi
	$(BIN)/python -m grpc_tools.protoc -I $(TFSERVING) --include_imports --descriptor_set_out=$(TFSERVING)/messages.binpb \
		--pyi_out=$(TFSERVING) serving.proto
	mv $(TFSERVING)/serving_pb2.pyi $(TFSERVING)/messages.pyi

gpu-driver:  ## A software Vulkan driver (Debian: chromium's SwiftShader), for the tests of a real GPU API
	@if ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then \
		echo "gpu-driver: needs apt-get and root; without it the tests in tests/gpu are skipped" >&2; \
	else \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium-common libvulkan1 >/dev/null \
		&& { test -f /usr/lib/chromium/vk_swiftshader_icd.json || apt-get install -y -qq --no-install-recommends chromium >/dev/null; } \
		|| echo "gpu-driver: apt-get failed; without chromium and libvulkan1 the tests in tests/gpu are skipped" >&2; \
	fi

test-packages:  ## What tests need of Debian: perf_analyzer's library, openssl for certificates, a browser
	@if ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ]; then \
		echo "test-packages: needs apt-get and root; without libb64-0d, openssl and chromium-driver some tests are skipped" >&2; \
	else \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends libb64-0d openssl chromium chromium-driver >/dev/null \
		|| echo "test-packages: apt-get failed; without libb64-0d, openssl and chromium-driver some tests are skipped" >&2; \
	fi

gpu-envs: $(WEBGPU_VENV)/.installed $(PLUGINS_VENV)/.installed  ## onnxruntime with WebGPU built in, and with plug-ins

gpu-bench: $(VENV)/.installed $(WEBGPU_VENV)/.installed  ## Measure every GPU and NPU that opens here
	benchmarks/gpu.sh

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

# Several builds of onnxruntime overwrite each other: each gets an environment, with what edgeserve needs else.
define gpu_env
	@$(PYTHON) -m venv $(@D) \
		|| { echo "error: Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 3; }
	@$(PYTHON) -c 'import tomllib; print(*(d for d in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if not d.startswith("onnxruntime")), sep="\n")' \
		> $(@D)/requirements.txt
	$(@D)/bin/python $(PIP) -r $(@D)/requirements.txt pytest hypothesis $(1)
	$(@D)/bin/python $(PIP) --no-deps -e .
	@touch $@
endef

$(WEBGPU_VENV)/.installed: pyproject.toml
	$(call gpu_env,onnxruntime-webgpu)

$(PLUGINS_VENV)/.installed: pyproject.toml
	$(call gpu_env,onnxruntime onnxruntime-ep-webgpu onnxruntime-ep-openvino onnxruntime-qnn)
