#!/usr/bin/env bash
# Resolves the locks anew, keeping what need not change; they hold versions and hashes, no addresses.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
uv=$(requirements/setup.sh --uv)

compile() { # the lock's name, its Python, its platform, more options
  local lock=requirements/$1.txt python=$2 platform=$3
  shift 3
  "$uv" pip compile --quiet pyproject.toml --generate-hashes --no-emit-index-url --no-header \
    --no-annotate --python-version "$python" --python-platform "$platform" --extra kubeflow \
    --output-file "$lock" "$@"
}

old=(--constraint requirements/tfx-1.16.in)
new=(--constraint requirements/tfx-1.21.in)
compile tfx-1.16 3.10 x86_64-manylinux_2_28 "${old[@]}" --extra dev
# Python 3.11 needs protobuf 4, and kfp one that can live with it.
cp requirements/tfx-1.16.txt requirements/tfx-1.16-py311.txt
compile tfx-1.16-py311 3.11 x86_64-manylinux_2_28 --constraint <(
  sed 's/^protobuf==.*/protobuf<5/; /^kfp==/d' requirements/tfx-1.16.in
) --extra dev
compile tfx-1.21 3.12 x86_64-manylinux_2_39 "${new[@]}" --extra dev
# The same versions, but for what 3.13 needs newer.
cp requirements/tfx-1.21.txt requirements/tfx-1.21-py313.txt
compile tfx-1.21-py313 3.13 x86_64-manylinux_2_39 "${new[@]}" --extra dev
# The image has what the tests ran with.
old+=(--constraint requirements/tfx-1.16.txt)
# Without a GPU, TensorFlow without CUDA's kernels: 750 MB less.
compile image-cpu 3.10 x86_64-manylinux_2_28 "${old[@]}" --extra cpu \
  --override <(echo "tensorflow; sys_platform == 'none'")
compile image-gpu 3.10 x86_64-manylinux_2_28 "${old[@]}" --extra gpu
