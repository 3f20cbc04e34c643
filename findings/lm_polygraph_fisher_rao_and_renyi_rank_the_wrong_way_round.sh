#!/usr/bin/env bash
# lm-polygraph 0.7.0 (PyPI), scikit-learn 1.9.1, numpy 2.4.6.
#
# Expected: every estimator gives "higher values" to "more uncertain samples", as each docstring says and as all of the
# package's measures take for granted.
# Seen: FisherRao and RenyiNeg return the divergence of the model's distribution from the uniform one, which is high where the
# model is sure. Their prediction-rejection ratio (1 for an oracle, 0 for chance) is -1.12 where minus their values get 0.80,
# so a table with these two baselines shows them as worse than chance. SelfCertainty, the same idea with another
# divergence, is negated and right. (Pull request 465 of the project, opened in August 2026, turns them; this release has it not.)
#
# Output seen (a logistic regression on scikit-learn's digits, as a model that answers in one token of ten; 82 % right):
#   MaximumSequenceProbability: rejection ratio 0.88, of its negation -1.38
#   SelfCertainty: rejection ratio 0.82, of its negation -1.17
#   FisherRao: rejection ratio -1.12, of its negation 0.80
#   RenyiNeg: rejection ratio -1.12, of its negation 0.80
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 scikit-learn==1.9.1 pillow==13.0.0 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps lm-polygraph==0.7.0
# the package's __init__ files import thirty libraries (openai, spacy, datasets, ...), which these parts do not use
(cd "$folder"/venv/lib/python*/site-packages/lm_polygraph && for room in . utils estimators; do : > $room/__init__.py; done)
echo "AutoProcessor = None" > "$folder/transformers.py"
PYTHONPATH="$folder" "$folder/venv/bin/python" -W ignore - <<'PYTHON'
from lm_polygraph.estimators.fisher_rao import FisherRao
from lm_polygraph.estimators.max_probability import MaximumSequenceProbability
from lm_polygraph.estimators.renyi_neg import RenyiNeg
from lm_polygraph.estimators.self_certainty import SelfCertainty
from lm_polygraph.ue_metrics import PredictionRejectionArea
from lm_polygraph.ue_metrics.ue_metric import get_random_scores, normalize_metric
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

images, digits = load_digits(return_X_y=True)
model = LogisticRegression(C=1e-3, max_iter=200).fit(images[:300], digits[:300])
logp = model.predict_log_proba(images[300:])
right = (logp.argmax(1) == digits[300:]).astype(float)
stats = {"greedy_log_likelihoods": logp.max(1)[:, None], "greedy_log_probs": logp[:, None]}

area = PredictionRejectionArea()
oracle, chance = area(-right, right), get_random_scores(area, right, num_iter=200)
for estimator, turned in ((MaximumSequenceProbability(), 0), (SelfCertainty(), 0), (FisherRao(), 1), (RenyiNeg(), 1)):
    assert "Higher values" in type(estimator).__call__.__doc__
    score = estimator(stats)
    ratio, negated = (normalize_metric(area(sign * score, right), oracle, chance) for sign in (1, -1))
    print(f"{estimator}: rejection ratio {ratio:.2f}, of its negation {negated:.2f}")
    assert (ratio < -0.5 and negated > 0.5) if turned else (ratio > 0.5 and negated < -0.5)
PYTHON
echo "as stated"
