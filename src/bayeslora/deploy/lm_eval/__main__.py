"""`python -m bayeslora.deploy.lm_eval ...` is `lm_eval ...` that knows `--model bayeslora`."""

from lm_eval.__main__ import cli_evaluate

import bayeslora.deploy.lm_eval  # noqa: F401

if __name__ == "__main__":
    cli_evaluate()
