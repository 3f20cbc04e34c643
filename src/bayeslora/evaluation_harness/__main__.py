"""`python -m bayeslora.evaluation_harness ...` is `lm_eval ...` that knows `--model bayeslora`."""

from lm_eval.__main__ import cli_evaluate

import bayeslora.evaluation_harness  # noqa: F401

if __name__ == "__main__":
    cli_evaluate()
