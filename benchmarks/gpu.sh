#!/usr/bin/env bash
# Measures every GPU and NPU of this machine: latency, throughput, placement, fallback.
#
#     benchmarks/gpu.sh [--resnet50] [--json FOLDER]
#
# Needs Python 3.11 or newer, and on Linux libvulkan.so.1 with the GPU's Vulkan driver (apt-get install
# libvulkan1 mesa-vulkan-drivers, or what the GPU's vendor ships). onnxruntime-webgpu, one wheel of 25 MB,
# is installed into an environment of its own; engines of the development environment (.venv) and plug-ins
# (.venvs/plugins) are measured, too, where those environments are there.
# --resnet50 adds a network that a real GPU is worth for; a software driver takes minutes for it.
set -euo pipefail
cd "$(dirname "$0")/.."

resnet= folder=
while [ $# -gt 0 ]; do
    case "$1" in
        --resnet50) resnet=1 ;;
        --json) folder="$2"; mkdir -p "$folder"; shift ;;
        *) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2 ;;
    esac
    shift
done

make --no-print-directory .venvs/webgpu/.installed
arguments=()
if [ -n "$resnet" ]; then
    # Made where the package onnx is: in the development environment.
    make --no-print-directory .venv/.installed
    work="$(mktemp -d)"
    trap 'rm -rf "$work"' EXIT
    .venv/bin/python -c "
import sys; sys.path.insert(0, '.')
from pathlib import Path
from benchmarks.networks import resnet50
resnet50(Path('$work/resnet50.onnx'))"
    arguments+=(--onnx "$work/resnet50.onnx")
fi

status=0
for environment in .venvs/webgpu .venvs/plugins .venv; do
    [ -x "$environment/bin/python" ] || continue
    echo "## $environment"
    json=()
    [ -z "$folder" ] || json=(--json "$folder/$(basename "$environment" | tr -d .).json")
    # 1: nothing opens with these engines. The next environment's may.
    "$environment/bin/python" benchmarks/gpu.py "${arguments[@]}" "${json[@]}" || status=$?
done
exit "$status"
