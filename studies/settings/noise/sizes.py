"""How large a noise of 0.05 in the weights of A and of B is beside the base's: its update, by layer, of two models.

OMP_NUM_THREADS=1 python studies/settings/noise/sizes.py studies/settings/noise/sizes.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from bayeslora.adapters.targets import default_targets
from bayeslora.adapters.units import layer_units
from bayeslora.models import load_base_model

STD, LAST = 0.05, 8
"""The default sigma, and the upper layers that are looked at."""


def sizes(base: Any) -> dict[str, float]:
    """rms of the update by noise in both factors, B's mean being 0, over that of the base weight."""
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=default_targets(base)))
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    found = {}
    for name, layer in layers[-2 * LAST :]:
        units = layer_units(layer, "default")
        found[name] = STD / units["B"] * (1 + (STD / units["A"]) ** 2) ** 0.5
    return found


if __name__ == "__main__":
    smollm2 = load_base_model("offline:smollm2", dtype="float32")[0]
    minilm = load_base_model("offline:minilm", kind="sequence_classification", num_labels=2)[0]
    record = {name: sizes(base) for name, base in {"smollm2": smollm2, "minilm": minilm}.items()}
    Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n")
