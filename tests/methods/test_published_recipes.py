"""The published recipes: they are configs, say what their pages say, and the comparison has the same numbers."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from bayeslora.experiments.comparison.config import CompareConfig
from bayeslora.options.parsing import config_parser, instantiate
from bayeslora.runs.config import RunConfig

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "examples" / "train" / "published").glob("*.yaml"))


def read(kind: type, path: Path) -> Any:
    parser = config_parser(kind)
    return instantiate(parser, parser.parse_args(["--config", str(path)]), kind)


def test_the_recipes_are_found() -> None:
    assert {path.stem for path in RECIPES} == {"blob", "c_lora", "dalorra", "ivon", "scalabl", "tfb"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_a_config_and_that_of_its_page(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    config: RunConfig = read(RunConfig, path)
    assert config.method.name == path.stem
    for name, value in content["method"]["init_args"].items():
        assert getattr(config.method, name) == value, name
    for name, value in content["train"].items():
        assert getattr(config.train, name) == value, name
    page = (ROOT / "docs" / "methods" / f"{path.stem}.md").read_text(encoding="utf-8")
    shown = page.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(shown) == content


def test_the_comparison_has_the_numbers_of_the_recipes() -> None:
    config: CompareConfig = read(CompareConfig, ROOT / "examples" / "compare" / "published.yaml")
    for path in RECIPES:
        recipe: RunConfig = read(RunConfig, path)
        run = config.run("arc_easy", path.stem, 0, config.grid(path.stem)[0])
        differing = {name for name, value in recipe.method.arguments.items() if getattr(run.method, name) != value}
        assert differing <= {"target_modules"}, path
        assert run.train.learning_rate == recipe.train.learning_rate and run.num_samples == recipe.num_samples
