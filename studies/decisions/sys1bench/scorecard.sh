#!/usr/bin/env bash
# Heads on 200 records served by `bayeslora serve` and judged by sys1bench's own scorecard and by ours, on the first 60 test records in two
# orders of their options. $1: the folder that generate.sh wrote; $2: where the scorecards go; runs and answers go into $RUNS.
# BIN and SUITES are the folders of the programs bayeslora and sys1bench.
set -euo pipefail
export HF_HUB_OFFLINE=1
port=8124 runs=${RUNS:-build/scorecards}
mkdir -p "$runs"
cat >"$runs/local.yaml" <<YAML
{adapter: jev_typesafe, model_id: jev-latest, url: "http://127.0.0.1:$port/v1/systemone", api_key: local, allow_alias: true,
 probe_models: true, deployment: local, timeout_s: 120, max_retries: 3}
YAML

for task in support_tickets phishing_email; do
  "$BIN/bayeslora" train --model.name offline:smollm2 --task.name "$1/${task}_clean.jsonl" --output_dir "$runs/$task" --overwrite
  "$BIN/bayeslora" serve "$runs/$task" --port "$port" --timeout 120 &
  server=$!
  trap 'kill $server' EXIT
  until curl --silent --fail "http://127.0.0.1:$port/readyz" >/dev/null; do kill -0 $server; sleep 1; done
  "$SUITES/sys1bench" run "$1/${task}_clean_test.jsonl" "$runs/$task.jsonl" --config "$runs/local.yaml" --limit 60 \
    --permutations 1 --concurrency 2 --cache "$runs/$task.sqlite"
  kill $server
  wait $server || true
  trap - EXIT
  "$SUITES/sys1bench" score "$runs/$task.jsonl" --out "$2/scorecard_$task.json" --table "$2/scorecard_$task.md"
  "$BIN/python" -m studies.decisions.sys1bench.ours "$runs/$task.jsonl" "$1/${task}_clean.jsonl" "$1/${task}_clean_test.jsonl" \
    >>"$2/scorecard_$task.md"
done
