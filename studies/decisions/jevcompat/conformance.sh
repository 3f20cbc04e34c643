#!/usr/bin/env bash
# jevcompat ($1) against `bayeslora serve offline:smollm2`, first without and then with a key; reports go into the folder $2.
set -euo pipefail
export HF_HUB_OFFLINE=1 DECISION_KEY=local-key
port=8123

run() { # name, options of the server, options of jevcompat
  "$BIN/bayeslora" serve offline:smollm2 --port "$port" --timeout 600 $2 &
  server=$!
  trap 'kill $server' EXIT
  until curl --silent --fail "http://127.0.0.1:$port/readyz" >/dev/null; do kill -0 $server; sleep 1; done
  "$JEVCOMPAT" test "http://127.0.0.1:$port" --json "$OUT/$1.json" --timeout 590 $3
  kill $server
  wait $server || true
  trap - EXIT
}

JEVCOMPAT=$1 OUT=$2
run no_key "" ""
run key "--api_key DECISION_KEY" "--key $DECISION_KEY"
