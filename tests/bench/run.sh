#!/usr/bin/env bash
# What ./dev bench runs: run.sh BIN_DIR [kernels|step|peer|control|all]
set -euo pipefail
bin=$1
what=${2:-all}
here=$(cd "$(dirname "$0")" && pwd)
threads=${NIBBLE_BENCH_THREADS:-2}

kernels() { "$bin/nibble-bench-kernels"; }

# Tokens/s and peak memory at three shapes; the 7B one takes its full depth.
steps() {
  local shape
  for shape in 135m 1.1b 7b; do
    "$bin/nibble-bench-step" --shape "$shape" --seq 512 --steps 2 --threads "$threads"
  done
}

# The peer and Nibble on the same weights and tokens, one after the other, in a virtual environment
# outside the tree (PyTorch comes from PyPI).
peer() {
  local venv=${NIBBLE_ORACLE_VENV:-$HOME/.cache/nibble/oracle-venv}
  [ -x "$venv/bin/python" ] || python3 -m venv "$venv"
  "$venv/bin/python" -c 'import torch, transformers, peft, bitsandbytes' 2>/dev/null ||
    "$venv/bin/pip" install -q -r "$here/../oracle/requirements.txt"
  dir=$(mktemp -d)
  trap 'rm -rf "$dir"' EXIT
  for shape in ${NIBBLE_BENCH_SHAPES:-135m}; do
    "$venv/bin/python" "$here/peer.py" --shape "$shape" --seq 512 --steps 3 --threads "$threads" \
      ${NIBBLE_BENCH_LAYERS:+--layers $NIBBLE_BENCH_LAYERS} --export "$dir/$shape" | tee "$dir/peer.json"
    "$bin/nibble-bench-step" --base "$dir/$shape" --seq 512 --steps 3 --threads "$threads" |
      tee "$dir/nibble.json"
    "$venv/bin/python" "$here/compare.py" "$dir/peer.json" "$dir/nibble.json"
  done
}

# The control plane: deciding, a million placements, placements on disk.
control() {
  "$bin/nibble-bench-control" decisions
  "$bin/nibble-bench-control" fleet
  "$bin/nibble-bench-control" durable
  "$bin/nibble-bench-rpc"
}

case $what in
  kernels | cpu) kernels ;;
  step) steps ;;
  peer) peer ;;
  control) control ;;
  all) kernels; steps; control ;;
  *) echo "bench takes kernels, step, peer or control, got '$what'" >&2; exit 2 ;;
esac
