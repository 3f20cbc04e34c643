#!/usr/bin/env bash
# The records of the study, by sys1bench 0.3.2 (pip install sys1bench==0.3.2), into the folder $1.
set -euo pipefail
mkdir -p "$1"
for task in support_tickets phishing_email; do
  sys1bench generate $task "$1/${task}_clean.jsonl" --n 200 --seed 1
  sys1bench generate $task "$1/${task}_noise.jsonl" --n 200 --seed 1 --label-noise 0.15
  sys1bench generate $task "$1/${task}_unknowable.jsonl" --n 200 --seed 1 --unknowable-frac 0.3
  sys1bench generate $task "$1/${task}_clean_test.jsonl" --n 150 --seed 1001
  sys1bench generate $task "$1/${task}_unknowable_test.jsonl" --n 150 --seed 1001 --unknowable-frac 0.3
done
