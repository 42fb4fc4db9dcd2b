#!/usr/bin/env bash
# Serves the last pushed model and asks it for one image; stderr may hold the server's own lines only.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
work=$(mktemp -d)
.venv/bin/python - "$work/one.png" <<'PYTHON'
import sys
import numpy as np
from PIL import Image
image = np.zeros((28, 28), np.uint8)
image[5:23, 12:16] = 255
Image.fromarray(image).save(sys.argv[1])
PYTHON
touch "$work/out"
.venv/bin/mnist-ae serve --backend embedded --port 0 --rest-port 0 >"$work/out" 2>"$work/err" &
server=$!
trap 'kill $server 2>/dev/null || true; rm -rf "$work"' EXIT
# A process of its own: nothing to wait on but what it prints.
until grep -qx ready "$work/out"; do
  kill -0 $server 2>/dev/null || { cat "$work/out" "$work/err" && exit 1; }
  sleep 0.2
done
target=$(sed -n 's/^ *gRPC //p' "$work/out")
model=$(sed -n 's/^serving \(.*\), version .*/\1/p' "$work/out")
for where in "--target $target --model $model" "--model $model"; do
  # shellcheck disable=SC2086 # words
  .venv/bin/mnist-ae predict "$work/one.png" $where 2>"$work/said"
  [ ! -s "$work/said" ] || { echo 'predict said on stderr:' && cat "$work/said" && exit 1; }
done
kill $server
wait $server
if grep -v ' serving\.' "$work/err"; then
  echo 'serve said that on stderr'
  exit 1
fi
echo '1 passed'
