#!/usr/bin/env bash
# nlp-uncertainty-zoo 1.0.3 (PyPI), numpy 2.4.6, pandas 3.1.1.
#
# Expected: ece(y_true, y_pred) takes labels and class probabilities, as evaluate_calibration hands them over, and returns the
# expected calibration error, a number from 0 to 1 that is near 0 for a calibrated model. sce does so class by class.
# Seen: ece averages the LABELS of a bin, 0 to 9 for ten classes, where accuracy belongs: |mean confidence - mean label|.
# A calibrated model of ten classes gets 2.8, and 5.3 with the same classes numbered the other way round; a model that
# always says class 0 with 0.95, where every label is 0, gets 0.95 and not 0.05. sce numbers the bins from 1 and visits 0 to 9:
# confidences above 0.9 are left out, so that a model which says 0.99 and is right in half of the cases has an error of 0.
#
# Output seen (20,000 items, 10 classes):
#   calibrated: ece 2.814, with the classes numbered the other way round 5.265, by the definition 0.010
#   certain (0.99) and right in half: sce 0.000, ece 3.515, by the definition 0.490
#   class 0 throughout, said with 0.95: ece 0.950, by the definition 0.050
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile numpy==2.4.6 pandas==3.1.1 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-compile --no-deps nlp-uncertainty-zoo==1.0.3 2>/dev/null
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import importlib.util
import sys
import sysconfig
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np

# The package imports torch, transformers, blitz and more; ece and sce need numpy and pandas alone.
for absent in ("einops", "frozendict", "torch", "torch.utils", "torch.utils.data", "tqdm"):
    sys.modules[absent] = MagicMock()
for parent in ("nlp_uncertainty_zoo", "nlp_uncertainty_zoo.models", "nlp_uncertainty_zoo.models.model"):
    sys.modules[parent] = MagicMock()
sys.modules["frozendict"].frozendict = dict
place = Path(sysconfig.get_path("purelib")) / "nlp_uncertainty_zoo/utils/calibration_eval.py"
spec = importlib.util.spec_from_file_location("calibration_eval", place)
package = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)

ITEMS, CLASSES = 20000, 10
generator = np.random.default_rng(0)


def by_definition(labels, probs, bins=10):
    """ECE of Guo et al. (2017)."""
    confidence, hit = probs.max(1), probs.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    return sum(abs((hit - confidence)[place == one].sum()) for one in range(bins)) / len(labels)


logits = 1.5 * generator.normal(size=(ITEMS, CLASSES)) - 0.2 * np.arange(CLASSES)
probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
labels = (probs.cumsum(1) < generator.random((ITEMS, 1))).sum(1)
found, right = package.ece(labels, probs), by_definition(labels, probs)
turned = package.ece(CLASSES - 1 - labels, probs[:, ::-1])
print(f"calibrated: ece {found:.3f}, with the classes numbered the other way round {turned:.3f}, by the definition {right:.3f}")
assert right < 0.02 and found > 1 and turned > found + 1, (found, turned, right)

answers = generator.integers(0, CLASSES, ITEMS)
certain = np.full((ITEMS, CLASSES), 0.01 / (CLASSES - 1))
certain[np.arange(ITEMS), answers] = 0.99
labels = np.where(generator.random(ITEMS) < 0.5, answers, (answers + 1) % CLASSES)
sce, found, right = package.sce(labels, certain), package.ece(labels, certain), by_definition(labels, certain)
print(f"certain (0.99) and right in half: sce {sce:.3f}, ece {found:.3f}, by the definition {right:.3f}")
assert sce == 0 and abs(right - 0.49) < 0.01 and found > 3, (sce, found, right)

zero, ones = np.zeros(100, dtype=int), np.tile([0.95] + [0.05 / 9] * 9, (100, 1))
found, right = package.ece(zero, ones), by_definition(zero, ones)
print(f"class 0 throughout, said with 0.95: ece {found:.3f}, by the definition {right:.3f}")
assert abs(found - 0.95) < 1e-9 and abs(right - 0.05) < 1e-9
PYTHON
echo "as stated"
