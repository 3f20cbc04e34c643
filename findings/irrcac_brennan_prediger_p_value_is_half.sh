#!/usr/bin/env bash
# irrCAC 0.4.4 (PyPI, agreement of raters or LLM judges), numpy 2.4.6, pandas 3.1.1, scipy 1.17.1.
#
# Expected: CAC(ratings).bp(), Brennan and Prediger's coefficient, comes with a p-value and a 95 % confidence interval of one
# test: p < 0.05 where the interval leaves out 0, as with gwet(), fleiss(), krippendorff() and conger() beside it. Two judges
# that answer at random are found to agree in one of twenty studies.
# Seen: bp() leaves out the factor 2 of the other four: its p-value is one tail, of the absolute value, so half the two-sided
# one for agreement and disagreement alike. It says "significant" where the interval in the same answer holds 0, and judges
# that toss coins are found to agree, or to disagree, in one of ten studies. The same two raters as a table
# (irrCAC.table.CAC) get about twice that p-value.
#
# Output seen:
#   bp: 0.233, 95 % interval -0.020 to 0.487, p 0.035, two-sided by hand 0.070
#   gwet: 0.234, 95 % interval -0.020 to 0.487, p 0.070, two-sided by hand 0.070
#   fleiss: 0.233, 95 % interval -0.020 to 0.486, p 0.071, two-sided by hand 0.071
#   krippendorff: 0.240, 95 % interval -0.014 to 0.493, p 0.063, two-sided by hand 0.063
#   conger: 0.233, 95 % interval -0.020 to 0.487, p 0.070, two-sided by hand 0.070
#   bp of the table: 0.233, p 0.068
#   coins in 1,000 studies: p of bp below 0.05 in 10.6 %, its interval without 0 in 6.0 %, p of fleiss below 0.05 in 6.0 %
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 pandas==3.1.1 scipy==1.17.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps irrcac==0.4.4 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
import pandas as pd
from irrCAC.raw import CAC
from irrCAC.table import CAC as TableCAC
from scipy import stats

ITEMS, STUDIES = 60, 1000


def two_sided(found):
    """The p-value of the answer's own coefficient and standard error, as the interval takes them."""
    return 2 * stats.t.sf(abs(found["coefficient_value"] / found["se"]), ITEMS - 1)


def answers(yes_yes, yes_no, no_yes, no_no):
    pairs = [("yes", "yes")] * yes_yes + [("yes", "no")] * yes_no + [("no", "yes")] * no_yes + [("no", "no")] * no_no
    return pd.DataFrame(pairs, columns=["judge", "human"])


ratings = answers(19, 11, 12, 18)
raw = {name: getattr(CAC(ratings), name)()["est"] for name in ("bp", "gwet", "fleiss", "krippendorff", "conger")}
table = TableCAC(pd.crosstab(ratings["judge"], ratings["human"])).bp()["est"]
for name, found in raw.items():
    low, high = found["confidence_interval"]
    print(
        f"{name}: {found['coefficient_value']:.3f}, 95 % interval {low:.3f} to {high:.3f}, p {found['p_value']:.3f}, "
        f"two-sided by hand {two_sided(found):.3f}"
    )
print(f"bp of the table: {table['coefficient_value']:.3f}, p {table['p_value']:.3f}")

generator, below = np.random.default_rng(0), []
for _ in range(STUDIES):
    coins = pd.DataFrame(generator.choice(["yes", "no"], (ITEMS, 2)), columns=["judge", "human"])
    study = CAC(coins)
    found = study.bp()["est"]
    low, high = found["confidence_interval"]
    below.append([found["p_value"] < 0.05, not low <= 0 <= high, study.fleiss()["est"]["p_value"] < 0.05])
bp, interval, fleiss = 100 * np.mean(below, axis=0)
print(
    f"coins in {STUDIES:,} studies: p of bp below 0.05 in {bp:.1f} %, its interval without 0 in {interval:.1f} %, "
    f"p of fleiss below 0.05 in {fleiss:.1f} %"
)

assert raw["bp"]["confidence_interval"][0] < 0 and raw["bp"]["p_value"] < 0.05 < table["p_value"]
assert abs(raw["bp"]["p_value"] - two_sided(raw["bp"]) / 2) < 1e-3
assert all(abs(found["p_value"] - two_sided(found)) < 2e-3 for name, found in raw.items() if name != "bp")
assert bp > 8 and interval < 8 and fleiss < 8, (bp, interval, fleiss)
PYTHON
echo "as stated"
