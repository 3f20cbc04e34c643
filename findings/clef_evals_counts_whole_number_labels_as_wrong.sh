#!/usr/bin/env bash
# clef-evals 0.2.0, httpx 0.28.1 (PyPI).
#
# Expected: an eval set whose options and labels are whole numbers ("rate this from 1 to 5", gold 4) is judged like one
# that writes them as texts, or it is refused.
# Seen: the options become texts on their way to the model, and the answer comes back as a text; the label does not. "4"
# is not 4, so every right answer counts as wrong: accuracy 0, and an ECE and Brier score as if the model were always
# surely wrong. Only the multiclass Brier score of the same result turns the label into a text, and is right. A file that
# has some labels as numbers and some as texts (a JSONL export of a table) loses just these, and looks plausible.
#
# Output seen (a model that is always right, with 0.96):
#   labels as texts: accuracy 1, ece 0.04, brier 0.0016, brier_multiclass 0.002
#   labels as numbers: accuracy 0, ece 0.96, brier 0.9216, brier_multiclass 0.002
#   a third of them as numbers: accuracy 0.667, ece 0.293, brier 0.3083, brier_multiclass 0.002
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps clef-evals==0.2.0
"$folder/venv/bin/pip" install --quiet httpx==0.28.1
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json

import httpx
from clef_evals import ClefClient, ClefConfig, ClefJudge, load_eval_set


def always_right(request):
    """A server that reads the right answer in the state."""
    body = json.loads(request.content)
    body = body.get("input", body)
    (name, question), right = next(iter(body["questions"].items())), body["state"].split()[-1]
    probabilities = {key: 0.96 if key == right else 0.01 for key in question["criteria"]}
    answer = {"type": "choice", "choice": right, "probabilities": probabilities, "confidence": 0.95}
    result = {"model": "clef", "answers": {name: answer}, "usage": {"input_tokens": 9, "output_tokens": 0}}
    return httpx.Response(200, json={"success": True, "errors": [], "messages": [], "result": result})


def judge(name, golds):
    with open("ratings.jsonl", "w", encoding="utf-8") as file:
        for row, gold in enumerate(golds):
            item = {"state": f"Worth {row % 5 + 1}", "instructions": "Which rating?", "choices": [1, 2, 3, 4, 5], "gold": gold}
            file.write(json.dumps(item) + "\n")
    config = ClefConfig("account", "token")
    client = ClefClient(config, http_client=httpx.Client(transport=httpx.MockTransport(always_right)))
    found = ClefJudge(config, client).evaluate(load_eval_set("ratings.jsonl"))
    assert found.failures == 0 and found.n_samples == len(golds)
    print(
        f"{name}: accuracy {found.accuracy:.3g}, ece {found.ece:.3g}, brier {found.brier:.4g}, "
        f"brier_multiclass {found.brier_multiclass:.3f}"
    )
    return found


numbers = [row % 5 + 1 for row in range(30)]
texts = judge("labels as texts", [str(number) for number in numbers])
whole = judge("labels as numbers", numbers)
mixed = judge("a third of them as numbers", [n if row % 3 == 0 else str(n) for row, n in enumerate(numbers)])
assert texts.accuracy == 1 and whole.accuracy == 0 and abs(mixed.accuracy - 2 / 3) < 1e-9
assert texts.ece < 0.05 and whole.ece > 0.9
assert texts.brier_multiclass == whole.brier_multiclass == mixed.brier_multiclass < 0.01
PYTHON
echo "as stated"
