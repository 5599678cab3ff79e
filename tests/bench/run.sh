#!/usr/bin/env bash
# What ./dev bench runs: run.sh BIN_DIR [cpu|kernels|grid|step|together|peer|control|plan|shared|all]
set -euo pipefail
bin=$1
what=${2:-all}
here=$(cd "$(dirname "$0")" && pwd)
threads=${NIBBLE_BENCH_THREADS:-2}

kernels() { "$bin/nibble-bench-kernels"; }

# Kernels, steps and generation beside their limits, and decoding beside bitsandbytes where the oracle's
# environment is: one table, and a picture of it at NIBBLE_BENCH_SVG.
cpu() {
  local lines shape python=${NIBBLE_ORACLE_VENV:-$HOME/.cache/nibble/oracle-venv}/bin/python
  lines=$(mktemp)
  {
    "$bin/nibble-bench-kernels" --json 1
    if [ -x "$python" ]; then "$python" "$here/peer_decode.py" || true; fi
    for shape in 135m 1.1b; do
      "$bin/nibble-bench-step" --shape "$shape" --seq 512 --steps 3 --threads "$threads"
    done
    "$bin/nibble-bench-generate" --shape 1.1b --threads "$threads"
  } >"$lines"
  python3 "$here/report.py" ${NIBBLE_BENCH_SVG:+--svg "$NIBBLE_BENCH_SVG"} <"$lines"
  rm -f "$lines"
  echo
  python3 "$here/bodies.py" "$bin"
}

# Tokens/s by sequence length and micro-batch, the probe beside.
grid() {
  local shape seq batch
  for shape in ${NIBBLE_BENCH_SHAPES:-135m}; do
    for seq in 512 2048; do
      for batch in 1 2 4 8; do
        "$bin/nibble-bench-step" --shape "$shape" --seq "$seq" --micro-batch "$batch" --steps 2 \
          --threads "$threads" ${NIBBLE_BENCH_LAYERS:+--layers $NIBBLE_BENCH_LAYERS}
      done
    done
  done | python3 "$here/report.py"
}

# Tokens/s and peak memory at three shapes; the 7B one takes its full depth.
steps() {
  local shape
  for shape in 135m 1.1b 7b; do
    "$bin/nibble-bench-step" --shape "$shape" --seq 512 --steps 2 --threads "$threads"
  done
}

# Two trainings beside each other, as many threads each as there are cores.
together() { python3 "$here/together.py" "$bin" --threads "$threads"; }

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
    "$bin/nibble-bench-step" --base "$dir/$shape" --seq 512 --steps 3 --threads "$threads" --recompute auto |
      tee "$dir/own_choice.json"
    "$venv/bin/python" "$here/compare.py" "$dir/peer.json" "$dir/nibble.json" "$dir/own_choice.json"
  done
}

# The control plane: deciding, a million placements, placements on disk.
control() {
  "$bin/nibble-bench-control" decisions
  "$bin/nibble-bench-control" reads
  "$bin/nibble-bench-control" fleet
  "$bin/nibble-bench-control" durable
  "$bin/nibble-bench-rpc"
}

# Ten jobs on one base, ten of short micro-batches, and what one product over the rows of several would gain.
shared() {
  python3 "$here/shared.py" "$bin" --shape "${NIBBLE_BENCH_SHAPES:-135m}" --threads "$threads"
  python3 "$here/shared.py" "$bin" --shape "${NIBBLE_BENCH_SHAPES:-135m}" --threads "$threads" --rows 64 --steps 20
  "$bin/nibble-bench-fused" --shape 7b
}

case $what in
  kernels) kernels ;;
  cpu) cpu ;;
  grid) grid ;;
  step) steps ;;
  together) together ;;
  peer) peer ;;
  control) control ;;
  plan) "$bin/nibble-bench-plan" ;;
  shared) shared ;;
  all) kernels; steps; control ;;
  *) echo "bench takes cpu, kernels, grid, step, together, peer, control, plan or shared, got '$what'" >&2; exit 2 ;;
esac
