#!/usr/bin/env bash
# jevcompat ($1) against `bayeslora serve offline:smollm2`, first without and then with a key; reports go into the folder $2, and with them
# seconds.csv: of the server the processor's seconds until it is ready and for the whole suite, and the suite's on the clock.
set -euo pipefail
export HF_HUB_OFFLINE=1 DECISION_KEY=local-key
port=8123

processor() { awk -v hz="$(getconf CLK_TCK)" '{ printf "%.1f", ($14 + $15) / hz }' "/proc/$server/stat"; }

run() { # name, options of the server, options of jevcompat
  "$BIN/bayeslora" serve offline:smollm2 --port "$port" --timeout 600 $2 &
  server=$!
  trap 'kill $server' EXIT
  until curl --silent --fail "http://127.0.0.1:$port/readyz" >/dev/null; do kill -0 $server; sleep 1; done
  ready=$(processor) began=$SECONDS
  "$JEVCOMPAT" test "http://127.0.0.1:$port" --json "$OUT/$1.json" --timeout 590 $3
  echo "$1,$ready,$(processor),$((SECONDS - began))" >>"$OUT/seconds.csv"
  kill $server
  wait $server || true
  trap - EXIT
}

JEVCOMPAT=$1 OUT=$2
echo "run,until_ready,processor,clock" >"$OUT/seconds.csv"
run no_key "" ""
run key "--api_key DECISION_KEY" "--key $DECISION_KEY"
