#!/usr/bin/env bash
# The demonstration behind ./dev demo: start Nibble on this machine, fine-tune the example, follow it,
# download the adapter, show one report answered before and after, and the held-out figures.
#
#   demo/run.sh BIN_DIR [--keep]        --keep: leave the server running at the end
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:?the folder with the four binaries}" && pwd)
keep=0
[ "${2:-}" = "--keep" ] && keep=1
nibble=$bin/nibble
data=${NIBBLE_DEMO_DIR:-$here/.run}
export NIBBLE_DATA_DIR=$data/nibble   # where every nibble command below looks for the server

bold() { if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }

rm -rf "$data"
mkdir -p "$data"
stop() { "$nibble" down >/dev/null 2>&1 || true; }
trap stop EXIT

bold "1. Start Nibble here: a server, one worker, everything under one folder"
"$nibble" up --listen 127.0.0.1:0 --http 127.0.0.1:0 --detach

prompt=$(head -n 1 "$here/data/heldout.jsonl" | sed 's/^{"prompt": *"\(.*\)", *"completion".*$/\1/; s/\\n/\n/g; s/\\"/"/g')
bold "2. The base model, before: one report it has never seen"
printf '%s\n' "$prompt"
printf '→'
"$nibble" generate --base "$here/base" --max-tokens 60 --temperature 0 "$prompt"

bold "3. What the job would need"
"$nibble" plan "$here/recipe.yaml"

bold "4. Fine-tune: QLoRA on $(wc -l <"$here/data/train.jsonl") reports and their records"
"$nibble" run "$here/recipe.yaml"
job=$("$nibble" ps --all -o name | head -n 1)

bold "5. Download the adapter (PEFT format)"
"$nibble" download "$job" -o "$data/adapter"

bold "6. The same report, after"
printf '%s\n' "$prompt"
printf '→'
"$nibble" generate --base "$here/base" --adapter "$data/adapter" --max-tokens 60 --temperature 0 "$prompt"

bold "7. 200 held-out reports, before and after"
printf 'before: '
"$nibble" generate --base "$here/base" --prompts "$here/data/heldout.jsonl" --limit 200 --max-tokens 60 --temperature 0 --score
printf 'after:  '
"$nibble" generate --base "$here/base" --adapter "$data/adapter" --prompts "$here/data/heldout.jsonl" --limit 200 --max-tokens 60 --temperature 0 --score

# What was made here is asked of its own server, which stops when this ends unless --keep is there.
curve="$nibble up --detach && $nibble metrics $job --plot && $nibble down"
scraped="what nibble up names"
if [ $keep -eq 1 ]; then
  curve="$nibble metrics $job --plot"
  scraped=127.0.0.1:$(sed -n 's/.*"http_port": *\([0-9]*\).*/\1/p' "$NIBBLE_DATA_DIR/server/run/server.json")/metrics
fi
bold "Next"
cat <<TEXT
Your own model and data:   $nibble run $here/recipe.yaml base_model=DIR datasets=FILE.jsonl
                           (start a server first: $nibble up)
Loss curve of this job:    export NIBBLE_DATA_DIR=$NIBBLE_DATA_DIR
                           $curve
Prometheus:                scrape $scraped; rules and dashboards: deploy/monitoring
The adapter:               $data/adapter, in PEFT's format, which vLLM and llama.cpp's converter read too
TEXT
if [ $keep -eq 1 ]; then
  trap - EXIT
  printf '\nStill running; stop it with: NIBBLE_DATA_DIR=%s %s down\n' "$NIBBLE_DATA_DIR" "$nibble"
fi
