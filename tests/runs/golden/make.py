"""Makes the golden checkpoint of a format version: `python tests/runs/golden/make.py tests/runs/golden/v1`.

Run once when a format version is born, never again: the files stand for what users have on disk. They hold a tiny base
model, an adapter on it for each posterior, and the logits that mean and draws of seed 3 gave. Where a draw of a given
seed becomes another on purpose, `--draws` writes what the old adapters now give, and leaves the means and the adapters.
"""

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from peft import PeftModel
from transformers import AutoModelForCausalLM

from bayeslora import sampling
from conftest import POSTERIORS, bayesian, tiny_llama, tokens


def main(folder: Path) -> None:
    tiny_llama().save_pretrained(folder / "base")
    expected = {}
    for posterior in POSTERIORS:
        options = {"mean": "inducing"} if posterior == "full" else {"learn_residual_scale": posterior == "diagonal"}
        if options.get("learn_residual_scale"):
            options["residual_scale"] = 0.5
        model = bayesian("llama", posterior=posterior, target_modules=["q_proj"], layers_to_transform=[3], **options)
        model.save_pretrained(folder / posterior)
        with torch.no_grad():
            mean = model(tokens()).logits[:, -1, :5]
        expected[posterior] = {"mean": mean.tolist(), "draws": draws(model, tokens())}
    write(folder, {"input_ids": tokens().tolist(), "logits": expected})


def renew_draws(folder: Path) -> None:
    expected = json.loads((folder / "expected.json").read_text())
    for posterior, logits in expected["logits"].items():
        base = AutoModelForCausalLM.from_pretrained(folder / "base")
        model = PeftModel.from_pretrained(base, str(folder / posterior))
        logits["draws"] = draws(model, torch.tensor(expected["input_ids"]))
    write(folder, expected)


def draws(model: PeftModel, input_ids: torch.Tensor) -> list[list[float]]:
    with torch.no_grad(), sampling(model, num_samples=2, seed=3):
        return model(input_ids).logits[:, -1, :5].tolist()


def write(folder: Path, expected: dict) -> None:
    (folder / "expected.json").write_text(json.dumps(expected, indent=1))


if __name__ == "__main__":
    (renew_draws if "--draws" in sys.argv else main)(Path(sys.argv[1]))
