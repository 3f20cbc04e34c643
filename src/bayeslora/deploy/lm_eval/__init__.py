"""EleutherAI's lm-evaluation-harness on the posterior predictive of a run; needs `pip install "bayeslora[lm-eval]"`.

Importing this package registers the model "bayeslora" with the harness. `python -m bayeslora.deploy.lm_eval` is the
harness's own command line with that model in it.
"""

try:
    import lm_eval  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'the evaluation harness is not installed ({error}); install it with pip install "bayeslora[lm-eval]".'
    ) from error

from bayeslora.deploy.lm_eval.model import PosteriorLM
from bayeslora.deploy.lm_eval.run import evaluate_with_harness

__all__ = ["PosteriorLM", "evaluate_with_harness"]
