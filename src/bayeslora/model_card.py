"""The README.md of an adapter folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from bayeslora.config import RunConfig
from bayeslora.saving import atomic_file

__all__ = ["write_model_card"]

_BODY = """# {method} adapter on {model}

Trained with bayeslora on `{task}` ({scoring} scoring, {train_examples} examples, seed {seed}).

{table}

## How to load

```python
{loading}
```
{note}"""

_NOTE = """
Without `import bayeslora` PEFT does not know the type of this adapter and says `KeyError: 'BAYES_LORA'`.
In eval mode the model is the posterior mean; `bayeslora.predict(model, batch, num_samples=10, seed=0)` averages draws.
"""


def write_model_card(adapter: Path, config: RunConfig, metrics: dict[str, Any]) -> None:
    """Write `adapter/README.md` with what was trained, how it scored, and how to load it."""
    bayesian = config.method.name != "lora"
    card = ModelCard(
        "---\n"
        + ModelCardData(library_name="peft", tags=["bayeslora", "lora", config.method.name]).to_yaml()
        + "\n---\n\n"
        + _BODY.format(
            **{name: metrics[name] for name in ("method", "model", "task", "scoring", "train_examples", "seed")},
            table=_table(metrics),
            loading=_loading(config, bayesian),
            note=_NOTE if bayesian else "",
        )
    )
    with atomic_file(adapter / "README.md") as aside:
        aside.write_text(str(card), encoding="utf-8")


def _table(metrics: dict[str, Any]) -> str:
    if "accuracy" not in metrics:
        return "It was not evaluated."
    names = ("accuracy", "nll", "ece", "brier", "num_examples", "num_samples")
    head = " | ".join(names)
    values = " | ".join(f"{metrics[name]:.4g}" for name in names)
    return f"On the {metrics['split']} split:\n\n| {head} |\n|{'---|' * len(names)}\n| {values} |"


def _loading(config: RunConfig, bayesian: bool) -> str:
    kind = "SequenceClassification" if config.task.scoring == "classification" else "CausalLM"
    lines = ["import bayeslora  # registers the adapter type"] if bayesian else []
    return "\n".join(
        [
            *lines,
            f"from peft import AutoPeftModelFor{kind}",
            "",
            f"model = AutoPeftModelFor{kind}.from_pretrained(FOLDER)",
        ]
    )
