#!/usr/bin/env bash
# netcal 1.4.0 (PyPI), torch 2.13.0, numpy 2.4.6.
#
# Expected: the docstring of TemperatureScaling gives the map as sigma(s / T), so `scaling.temperature` is T, by which a
# server divides its logits: above 1 for a model that is too sure.
# Seen: `temperature` is the factor that the logits are multiplied with, 1 / T. transform() itself is right, so nothing
# looks wrong until somebody carries the number elsewhere: dividing by it makes an overconfident model more so. Logits
# that are 2.5 times too large get a "temperature" of 0.41; divided by it, the NLL goes from 1.20 to 2.45 nats, where
# the right temperature, 1 / 0.41, gives 0.91.
#
# Output seen:
#   temperature 0.41 for logits 2.5 times too large; NLL 1.201 raw, 0.913 by transform(), 0.913 by logits / (1 / temperature),
#       2.449 by logits / temperature
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 matplotlib==3.11.2 tqdm protobuf absl-py six 2>/dev/null
"$folder/venv/bin/pip" install --quiet --no-deps netcal==1.4.0 gpytorch==1.15.2 pyro-ppl==1.9.2 pyro-api opt-einsum linear-operator==0.6.1 jaxtyping \
    wadler-lindig tensorboard==2.21.0 tikzplotlib==0.10.1 webcolors markdown werkzeug grpcio pillow markupsafe 2>/dev/null
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import numpy as np
from netcal.scaling import TemperatureScaling
from scipy.special import log_softmax, softmax

generator = np.random.default_rng(0)
true = 1.5 * generator.normal(size=(4000, 4))
labels = np.array([generator.choice(4, p=row) for row in softmax(true, 1)])
logits = 2.5 * true


def nll(log_probabilities):
    """In nats."""
    return -log_probabilities[np.arange(len(labels)), labels].mean()


scaling = TemperatureScaling()
scaling.fit(softmax(logits, 1), labels)
temperature = float(np.asarray(scaling.temperature).item())
raw, own = nll(log_softmax(logits, 1)), nll(np.log(scaling.transform(softmax(logits, 1))))
multiplied, divided = nll(log_softmax(logits * temperature, 1)), nll(log_softmax(logits / temperature, 1))
print(
    f"temperature {temperature:.2f} for logits 2.5 times too large; NLL {raw:.3f} raw, {own:.3f} by transform(), "
    f"{multiplied:.3f} by logits / (1 / temperature), {divided:.3f} by logits / temperature"
)
assert "s / T" in TemperatureScaling.__doc__
assert temperature < 1 and abs(own - multiplied) < 1e-3 and own < raw < divided
PYTHON
