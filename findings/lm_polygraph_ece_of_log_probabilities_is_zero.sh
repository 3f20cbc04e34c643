#!/usr/bin/env bash
# lm-polygraph 0.7.0 (PyPI), scikit-learn 1.9.1, numpy 2.4.6.
#
# Expected: ECE()(estimator, target), one of its measures of an uncertainty score against right and wrong answers, is the
# calibration error of that score's confidences, or is refused where the score is no probability.
# Seen: it bins minus the score on [0, 1] and leaves out, without a word, whatever lies outside. MaximumSequenceProbability
# and Perplexity, the first baselines of every table, are negative log probabilities, and minus the entropy is negative too,
# so no item is in any bin: their ECE is exactly 0, "perfectly calibrated", on any data, and still 0 when every right
# answer is called wrong. The same probabilities, not their logs, have an ECE of 0.22. normalize=True, which stretches the
# scores of the very sample to [0, 1], gives a number, 0.11, that is of no probability either.
#
# Output seen (a logistic regression on scikit-learn's digits, as a model that answers in one token of ten; 82 % right):
#   MaximumSequenceProbability: ECE 0.0, all answers flipped 0.0, normalize=True 0.114
#   Perplexity: ECE 0.0, all answers flipped 0.0, normalize=True 0.114
#   MeanTokenEntropy: ECE 0.0, all answers flipped 0.0, normalize=True 0.307
#   the probabilities themselves: ECE 0.221
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
import numpy as np
from lm_polygraph.estimators.max_probability import MaximumSequenceProbability
from lm_polygraph.estimators.perplexity import Perplexity
from lm_polygraph.estimators.token_entropy import MeanTokenEntropy
from lm_polygraph.ue_metrics import ECE
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

images, digits = load_digits(return_X_y=True)
model = LogisticRegression(C=1e-3, max_iter=200).fit(images[:300], digits[:300])
logp = model.predict_log_proba(images[300:])
right = (logp.argmax(1) == digits[300:]).astype(float)
stats = {"greedy_log_likelihoods": logp.max(1)[:, None], "entropy": -(np.exp(logp) * logp).sum(1)[:, None]}

for estimator in (MaximumSequenceProbability(), Perplexity(), MeanTokenEntropy()):
    score = estimator(stats)
    own, flipped, stretched = ECE()(score, right), ECE()(score, 1 - right), ECE(normalize=True)(score, right)
    print(f"{estimator}: ECE {own}, all answers flipped {flipped}, normalize=True {stretched:.3f}")
    assert own == flipped == 0 and stretched > 0.05, (own, flipped, stretched)
honest = ECE()(-np.exp(logp.max(1)), right)
print(f"the probabilities themselves: ECE {honest:.3f}")
assert 0.15 < honest < 0.3, honest
PYTHON
echo "as stated"
