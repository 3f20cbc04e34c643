"""Bayesian-LoRA on Hugging Face PEFT: calibrated adapters that know what they do not know."""

import importlib
import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if sys.argv[:1] == ["-m"] and sys.orig_argv[-len(sys.argv)] == __name__:
    # `python -m bayeslora` imports this first. The command does not need it for what is wrong or asks for help, and
    # hides what other libraries say while it imports them; it imports this again when there is something to do.
    sys.argv[0] = __file__
    del sys.modules[__name__]
    from bayeslora_cli.main import main

    main()
    sys.exit()

# Each file of a method registers its adapter type with PEFT, which then loads adapters of all of them.
from bayeslora import methods as methods
from bayeslora.adapters import BayesianLoraConfig, RandomLoraConfig, RandomLoraModel
from bayeslora.adapters.draws import random_factors
from bayeslora.adapters.from_lora import from_lora
from bayeslora.adapters.sampling import sampling
from bayeslora.prediction.predictive import Predictive, predict
from bayeslora.scoring import Classification, Cloze, Letter
from bayeslora.system.version import __version__ as __version__
from bayeslora.training.elbo import kl_divergence, negative_elbo

if TYPE_CHECKING:
    from bayeslora.deploy.hub import push_to_hub
    from bayeslora.prediction.generation import generate
    from bayeslora.runs import distill, load_run
    from bayeslora.runs.bayesian_head import BayesianHead
    from bayeslora.runs.decisions import DecisionModel
    from bayeslora.tasks import get_task
    from bayeslora.training.sft import BayesianSFTTrainer as BayesianSFTTrainer
    from bayeslora.training.trainer import BayesianLoraTrainer, ELBOTrainerMixin

__all__ = [
    "BayesianHead",
    "BayesianLoraConfig",
    "BayesianLoraTrainer",
    "Classification",
    "Cloze",
    "DecisionModel",
    "ELBOTrainerMixin",
    "Letter",
    "Predictive",
    "RandomLoraConfig",
    "RandomLoraModel",
    "distill",
    "from_lora",
    "generate",
    "get_task",
    "kl_divergence",
    "load_run",
    "negative_elbo",
    "predict",
    "push_to_hub",
    "random_factors",
    "sampling",
]

_LATER = {
    "BayesianHead": "runs.bayesian_head",
    "BayesianLoraTrainer": "training.trainer",
    "BayesianSFTTrainer": "training.sft",
    "DecisionModel": "runs.decisions",
    "ELBOTrainerMixin": "training.trainer",
    "distill": "runs",
    "generate": "prediction.generation",
    "get_task": "tasks",
    "load_run": "runs",
    "push_to_hub": "deploy.hub",
}
"""Names whose modules import a trainer, data sets, metrics, pictures or TRL, which a user of adapters alone need not
wait for or have.

BayesianSFTTrainer is not in `__all__`, so that `from bayeslora import *` needs no extra.
"""

if not TYPE_CHECKING:  # A type checker would take any name for one of these.

    def __getattr__(name: str) -> Any:
        if name in _LATER:
            return getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
        # Any room is there without an import of its own, whether or not one of the names above comes from it.
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_LATER})
