#!/usr/bin/env bash
# luq 0.0.2 (PyPI, "Language Models Uncertainty Quantification"), torch 2.13.0.
#
# Expected: MaxProbabilityEstimator "estimates uncertainty as one minus the probability of the most likely sequence in the
# list of samples", TopKGap measures "the gap between the most probable sequence and the k-th most probable one", and
# PredictiveEntropy is an entropy of answers: each is low where the model gives one answer, surely, time and again.
# Seen: all three treat every sample as an answer of its own, equal ones included, and divide the probabilities by their
# sum. A model that answers "A" ten times, at probability 0.97, gets the highest uncertainty there is: 1 - 1/10 where 0.03
# was promised, ln 10, and a gap of 0; more than one that spreads its answers over A to D. On a calibrated model's answers to
# multiple choice questions (the README's own example, ten samples) they find no wrong answer, or rather the right ones.
# SemanticEntropy, the one estimator that groups equal answers, is fine on the same samples.
#
# Output seen:
#   A at 0.97, ten times: MaxProbability 0.90, PredictiveEntropy 2.30, TopKGap 1.00, SemanticEntropy 0.00, 1 - largest
#       probability, by hand 0.03, entropy of the shares, by hand 0.00
#   A to D at 0.4 to 0.1: MaxProbability 0.87, PredictiveEntropy 2.24, TopKGap 1.00, SemanticEntropy 1.08, 1 - largest
#       probability, by hand 0.60, entropy of the shares, by hand 1.28
#   AUROC for the 606 wrong answers of 2,000: MaxProbability 0.40, PredictiveEntropy 0.49, TopKGap 0.49, SemanticEntropy
#       0.72, 1 - largest probability, by hand 0.74, entropy of the shares, by hand 0.68
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile torch==2.13.0 numpy==2.4.6 scikit-learn==1.9.1 networkx==3.6.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps luq==0.0.2 2>/dev/null
# the models of transformers are not used here, only named in annotations
echo "AutoTokenizer = PreTrainedModel = PreTrainedTokenizerBase = object" > "$folder/transformers.py"
PYTHONPATH="$folder" OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
from collections import Counter

import numpy as np
import torch
from luq.llm import LLMOutput, LLMSamples
from luq.llm.nli import NLIOutput, NLIResult
from luq.models import MaxProbabilityEstimator, PredictiveEntropyEstimator, SemanticEntropyEstimator, TopKGapEstimator
from sklearn.metrics import roc_auc_score

SAMPLES, LETTERS = 10, "ABCD"
ESTIMATORS = {
    "MaxProbability": MaxProbabilityEstimator(),
    "PredictiveEntropy": PredictiveEntropyEstimator(),
    "TopKGap": TopKGapEstimator(),
}
SAME = {
    (one, other): NLIOutput(NLIResult.ENTAILMENT if one == other else NLIResult.CONTRADICTION, torch.empty(0))
    for one in LETTERS
    for other in LETTERS
}


def sampled(probs, draws):
    """The answers of these draws, with the log probability of their one token."""
    outputs = [LLMOutput(LETTERS[draw], torch.tensor([probs[draw]]).log()) for draw in draws]
    return LLMSamples(outputs, outputs[0], {})


def uncertainties(probs, draws):
    samples = sampled(probs, draws)
    found = {name: estimator.estimate_uncertainty(samples) for name, estimator in ESTIMATORS.items()}
    found["SemanticEntropy"] = abs(SemanticEntropyEstimator().estimate_uncertainty(samples, nli_table=SAME))
    shares = np.array(list(Counter(draws).values())) / len(draws)
    found["1 - largest probability, by hand"] = 1 - max(probs)
    found["entropy of the shares, by hand"] = abs((shares * np.log(shares)).sum())
    return found


def show(numbers):
    return ", ".join(f"{name} {number:.2f}" for name, number in numbers.items())


sure = uncertainties([0.97, 0.01, 0.01, 0.01], [0] * SAMPLES)
unsure = uncertainties([0.4, 0.3, 0.2, 0.1], [0] * 4 + [1] * 3 + [2] * 2 + [3])
print("A at 0.97, ten times: " + show(sure))
print("A to D at 0.4 to 0.1: " + show(unsure))

generator = np.random.default_rng(0)
logits = 2 * generator.standard_normal((2000, 4))
probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
rows = [(row, generator.choice(4, SAMPLES, p=row).tolist()) for row in probs]
wrong = [generator.choice(4, p=row) != row.argmax() for row in probs]  # the truth is drawn from the model's own probabilities
found = [uncertainties(*row) for row in rows]
auroc = {name: roc_auc_score(wrong, [each[name] for each in found]) for name in found[0]}
print(f"AUROC for the {sum(wrong)} wrong answers of 2,000: " + show(auroc))
assert sure["MaxProbability"] > 0.85 and abs(sure["PredictiveEntropy"] - np.log(10)) < 0.01 and sure["TopKGap"] > 0.99
assert all(sure[name] > unsure[name] - 1e-6 for name in ESTIMATORS) and sure["SemanticEntropy"] < unsure["SemanticEntropy"]
assert all(auroc[name] < 0.55 for name in ESTIMATORS) and auroc["SemanticEntropy"] > 0.65
assert auroc["1 - largest probability, by hand"] > 0.65
PYTHON
echo "as stated"
