#!/usr/bin/env bash
# sys1bench 0.3.2 (PyPI), numpy 2.4.6.
#
# Expected: a manifest whose items list their options in different orders (the usual cure for a model's liking for the
# first one), or have different options, is scored item by item: a model that is always right costs nothing, and a
# scorecard holds every answered row.
# Seen: `decision-value` names the columns of all probabilities after the options of the first row. Where another row has
# them in another order its answer is charged as a wrong one, without a word: a model that is right on every item, and
# sure, is charged more than 1 for each decision, where its true cost is 0. `score` keeps the rows that have as many
# options as the first row, for calibration, selective metrics and temperature, and leaves out the others; its accuracy is
# of all rows, so two numbers of one card are of different items. Which ones depends on the row that stands first.
#
# Output seen (400 generated support tickets, a model that puts 0.95 on the right option of each):
#   options in one order: accuracy 1.000, cost per 10k decisions 0
#   options shuffled for each item: accuracy 1.000, cost per 10k decisions 13675
#   half of the items with five of the options: 400 rows, calibration of 200; the other half first: calibration of 200 others
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps sys1bench==0.3.2
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 pydantic==2.14.4 pyyaml==6.0.3 httpx==0.28.1 pandas==3.1.1 typer 2>/dev/null
cd "$folder"
"$folder/venv/bin/sys1bench" generate support_tickets tickets.jsonl --n 400 --seed 1 > log
"$folder/venv/bin/python" - <<'PYTHON'
import json
import random

from sys1bench.adapters.base import finalize_answer
from sys1bench.adapters.mock import MockAdapter
from sys1bench.analysis.decision_value import decision_value_report
from sys1bench.report.scorecard import scorecard
from sys1bench.runners.benchmark_runner import run_items
from sys1bench.schemas import TaskItem

with open("tickets.jsonl", encoding="utf-8") as file:
    TICKETS = [json.loads(line) for line in file]


class AlwaysRight(MockAdapter):
    """Puts 0.95 on the right option."""

    def decide(self, request):
        response = super().decide(request)
        for name, question in request.questions.items():
            rest = 0.05 / (question.cardinality - 1)
            probabilities = [0.95 if key == question.ground_truth else rest for key in question.option_keys]
            response.answers[name] = finalize_answer(question, probabilities)
        return response


def items(change):
    """The tickets with their question for the queue alone, whose options `change` gets with the right one."""
    made = []
    for row, ticket in enumerate(json.loads(json.dumps(TICKETS))):
        question = ticket["questions"]["queue"]
        question["criteria"] = change(row, question["criteria"], question["ground_truth"])
        made.append(TaskItem.model_validate(ticket | {"questions": {"queue": question}}))
    return made


def shuffled(row, options, right):
    return random.Random(row).sample(options, len(options))


def fewer(row, options, right):
    """Of every second item the right one and four others."""
    others = [option for option in options if option["key"] != right]
    return options if row % 2 else [option for option in options if option not in others[4:]]


def rows(manifest):
    return run_items(manifest, AlwaysRight())


def cost(name, manifest):
    found = rows(manifest)
    value, card = decision_value_report(found, manifest)["queue"], scorecard(found)
    print(f"{name}: accuracy {card['accuracy']:.3f}, cost per 10k decisions {value['argmax']['cost_per_10k']:.0f}")
    return card["accuracy"], value["argmax"]["cost_per_10k"]


plain, mixed = cost("options in one order", items(lambda row, options, right: options)), cost(
    "options shuffled for each item", items(shuffled)
)
found = rows(items(fewer))
first, second = scorecard(found), scorecard(found[1:] + found[:1])
print(
    f"half of the items with five of the options: {first['n_rows']} rows, calibration of {first['calibration']['n']}; "
    f"the other half first: calibration of {second['calibration']['n']} others"
)
assert plain == (1, 0) and mixed[0] == 1 and mixed[1] > 5000
assert first["n_rows"] == second["n_rows"] == 400 and first["calibration"]["n"] == second["calibration"]["n"] == 200
PYTHON
echo "as stated"
