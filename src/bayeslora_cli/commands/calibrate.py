"""bayeslora calibrate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace

from bayeslora_cli.commands.base import Command, add_option, add_usual, print_result

if TYPE_CHECKING:
    from bayeslora.runs.decisions.calibration import Calibration, Policy


class Calibrate(Command):
    """Calibrate a decision model on labelled records: temperatures, certified thresholds."""

    name = "calibrate"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The model, the records, and what is promised."""
        parser.add_argument("run", type=str, help="Folder of the decision model; its calibration is replaced.")
        parser.add_argument("--data", type=str, required=True, help="Labelled records that it was not trained on.")
        add_option(parser, "--alpha", float, "Errors to promise among automated answers; default: none.")
        add_option(parser, "--delta", float, "Probability with which the promise may fail.", 0.1)
        signals = Literal["confidence", "entropy", "novelty"]
        add_option(parser, "--signal", signals, "What the threshold is on.", "confidence")
        said = "Share of states whose right option is in x_set of the answers; default: no sets."
        add_option(parser, "--coverage", float, said)
        add_usual(parser, "device", "json")

    def run(self, options: Namespace, parser: ArgumentParser) -> None:
        """Prints what was learned."""
        from bayeslora.runs.decisions.run import calibrate_folder

        chosen = {name: options[name] for name in ("alpha", "delta", "signal", "coverage", "device")}
        model = calibrate_folder(options.run, options.data, **chosen)
        assert model.calibration is not None
        found = model.calibration
        temperatures = ", ".join(f"{name} {value:.3g}" for name, value in found.temperatures.items())
        lines = [_line(policy) for policy in found.policies.values()]
        print_result(options, found.to_dict(), f"temperatures: {temperatures}", *lines, _sizes(found))


def _line(policy: Policy) -> str:
    found = policy.certified
    if found.threshold is None:
        return f"{policy.question}: nothing can be certified on {found.units} states; everything is escalated"
    return (
        f"{policy.question}: {found.coverage:.0%} automated at {policy.signal} >= {found.threshold:.4g}; "
        f"{found.errors} of {found.accepted} wrong, at most {found.bound:.1%}"
    )


def _sizes(found: Calibration) -> str:
    """Empty where no sets were asked for."""
    sizes = found.set_sizes
    if sizes is None:
        return ""
    return f"sets of {found.coverage:g}: {sizes.mean:.2f} options in the mean, {sizes.single:.0%} are single answers"
