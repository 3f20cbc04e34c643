"""The tiny world that is attacked: a base model, an encoder, items, and a config that works."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from test_cli import items, write_items

from conftest import byte_level_tokenizer, tiny_llama


@dataclass(frozen=True)
class World:
    """A folder with `base/`, `data/` and `config.yaml`."""

    folder: Path

    @property
    def config(self) -> dict[str, Any]:
        """A config of a run that takes a second."""
        return copy.deepcopy(
            {
                "model": {"name": str(self.folder / "base"), "device": "cpu"},
                "task": {"name": str(self.folder / "data"), "scoring": "letter"},
                "method": {"class_path": "BayesianLora", "init_args": {"r": 2, "last_layers": 2, "prior_std": 0.3}},
                "train": {"max_steps": 3, "batch_size": 4, "learning_rate": 0.01, "save_steps": 1},
                "seed": 0,
                "num_samples": 2,
                "temperature_scaling": True,
                "batch_size": 8,
            }
        )

    @property
    def comparison(self) -> dict[str, Any]:
        """A comparison of two rows and two seeds."""
        run = self.config
        rows = {
            "lora": {"method": {"class_path": "Lora"}, "temperature": True},
            "bayesian_lora": {"method": {"class_path": "BayesianLora"}},
        }
        return {
            "model": run["model"],
            "tasks": {"tiny": run["task"]},
            "rows": rows,
            "adapter": {"r": 2, "last_layers": 2},
            "train": run["train"],
            # Checkpoints at each step, for kills between them; epochs are chosen at their ends alone.
            "protocol": {"further_rates": 0, "choose_epochs": False, "length_powers": [], "base_rows": False},
            "learning_rates": [0.01],
            "seeds": [0, 1],
            "num_samples": 2,
        }

    def write(self, name: str, content: Any) -> Path:
        """`content` as YAML in the world's folder."""
        path = self.folder / name
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path


def make_world(folder: Path) -> World:
    """Write the base model and the items."""
    tokenizer = byte_level_tokenizer()
    tiny_llama(vocab_size=len(tokenizer), max_position_embeddings=512).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    (folder / "data").mkdir()
    for split, count, offset in (("train", 12, 0), ("dev", 6, 100), ("test", 6, 200)):
        write_items(folder / "data" / f"{split}.jsonl", items(count, offset))
    write_items(folder / "new.jsonl", items(4, 300))
    world = World(folder)
    world.write("config.yaml", world.config)
    world.write("comparison.yaml", world.comparison)
    return world
