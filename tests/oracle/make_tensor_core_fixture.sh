#!/usr/bin/env bash
# Makes fixtures/tensor_cores.json: what NVIDIA's CuTe headers say of the instructions that kernels/cuda issues
# (cute_facts.cc). By hand, when these change; needs g++, a CUDA toolkit's headers and PyPI, but no GPU.
#
#   tests/oracle/make_tensor_core_fixture.sh [CUTLASS_INCLUDE]
#
# CUTLASS_INCLUDE   a folder with cute/ and cutlass/; without it the wheel nvidia-cutlass is unpacked outside the tree
# CUDA_PATH         the toolkit; default /usr/local/cuda
set -euo pipefail

version=4.2.0.0
here="$(cd "$(dirname "$0")" && pwd)"
cuda="${CUDA_PATH:-/usr/local/cuda}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
include="${1:-}"
if [[ -z $include ]]; then
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "nvidia-cutlass==$version"
  python3 -m zipfile -e "$work"/nvidia_cutlass-*.whl "$work/cutlass"
  include="$work/cutlass/cutlass_library/source/include"
fi
g++ -std=c++20 -w -isystem "$include" -isystem "$cuda/include" -isystem "$cuda/include/cccl" \
  "$here/cute_facts.cc" -o "$work/cute_facts"
# CuTe says on stdout that a host has no addresses of shared memory: those in the fixture are 0.
"$work/cute_facts" "$here/fixtures/tensor_cores.json" >/dev/null
echo "wrote $here/fixtures/tensor_cores.json"
