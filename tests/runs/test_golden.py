"""Adapters of format version 1 load for ever, with the mean and the draws they had when they were written."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bayeslora import sampling

GOLDEN = Path(__file__).parent / "golden" / "v1"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.mark.parametrize("posterior", sorted(EXPECTED["logits"]))
def test_a_golden_checkpoint_still_means_what_it_meant(posterior):
    base = AutoModelForCausalLM.from_pretrained(GOLDEN / "base")
    model = PeftModel.from_pretrained(base, str(GOLDEN / posterior))
    ids = torch.tensor(EXPECTED["input_ids"])
    with torch.no_grad():
        mean = model(ids).logits[:, -1, :5]
        with sampling(model, num_samples=2, seed=3):
            draws = model(ids).logits[:, -1, :5]
    expected = EXPECTED["logits"][posterior]
    torch.testing.assert_close(mean, torch.tensor(expected["mean"]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(draws, torch.tensor(expected["draws"]), rtol=1e-4, atol=1e-5)
    assert (draws - mean.repeat(2, 1)).abs().max() > 1e-3
