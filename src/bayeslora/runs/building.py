"""What a training begins with: the adapted model, what reads its items, and the cache of its trunk."""

from __future__ import annotations

from pathlib import Path

from peft import PeftModel
from transformers import set_seed

from bayeslora.runs.config import RunConfig
from bayeslora.runs.cross_fitting import below_head, read_above_adapters, read_by_heads, reading_of
from bayeslora.runs.loading import features_folder, load_model, merge_resolved
from bayeslora.scoring import Scoring, get_scoring
from bayeslora.scoring.trunk_cache import TrunkCache
from bayeslora.system.log import logger


def build_model(config: RunConfig, output: Path, width: int | None = None) -> tuple[PeftModel, Scoring]:
    """The model that the training of a run in `output` begins with, and what reads its items or texts.

    Args:
        config: The run; with classification it names the classes.
        output: The run folder.
        width: The most choices of an item.
    """
    set_seed(config.seed)
    base, _, scoring = load_model(merge_resolved(config.model, output), config.task, num_labels=width)
    method = config.method
    if scoring.by_heads:
        method = below_head(method, base)
        read_by_heads(config, base, scoring, features_folder(config.train, output))
    set_seed(config.seed)
    model = method.adapt(base, scoring.kind)
    if reading := reading_of(scoring):
        read_above_adapters(model, reading)
    return model, scoring


def open_trunk_cache(config: RunConfig, model: PeftModel, shared: TrunkCache | None = None) -> TrunkCache | None:
    """The trunk cache of a run as its config says; None where it is switched off or cannot apply.

    Args:
        config: The run.
        model: With the run's adapters.
        shared: That of another run on the same base model and layers; it wins over the config's folder and limit.

    Raises:
        ValueError: The trunk of `shared` has another length.
    """
    options = config.train
    # Batches of classification do not say where an item's tokens lie, and most encoders have dropout at the bottom.
    if not (options.cache_trunk and get_scoring(config.task.scoring).shares_trunk):
        return None
    # Prompts of which none comes again would only fill it.
    if config.task.scoring == "codes" and config.task.shuffles is None:
        return None
    if shared is not None:
        return shared.rebind(model)
    cache = TrunkCache(model, options.cache_trunk_limit, options.cache_trunk_folder)
    if cache.skipped:
        logger.debug("caching the output of the %d frozen layers below the first adapter", cache.skipped)
    return cache if cache.skipped else None
