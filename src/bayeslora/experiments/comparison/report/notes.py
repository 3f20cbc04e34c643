"""How to read the tables of a report."""

from __future__ import annotations


def notes(resamples: int) -> dict[str, str]:
    """What the marks and columns mean: names and texts.

    Args:
        resamples: Bootstrap resamples behind the marks.
    """
    return {
        "a ± b": "Mean and sample standard deviation over seeds. Arrows point to where a metric is better.",
        "Bold, and ≈": (
            "Bold is the best mean of its column; ≈ marks the rows that cannot be told apart from it: the 95 % "
            "interval of the difference to the best contains 0. The interval (basic bootstrap) comes from "
            f"{resamples} resamples of the items, the same for all rows, and of the seeds. Few seeds understate their "
            "own share, and nothing is corrected for the number of rows: a row without a mark is "
            "probably worse, a row with ≈ may be."
        ),
        "predicts uniformly": (
            "The temperature of these seeds, fitted on dev, is at a bound of its search: whatever the item, the scaled "
            "probabilities are all but equal (or, at the lower bound, the first choice is all but certain). Such a row "
            "looks well calibrated and says nothing; it is in no mean, mark or picture."
        ),
        "accuracy, NLL, Brier": (
            "Share of items whose most probable choice is right; negative log-likelihood of the right choice in nats; "
            "squared error of the probabilities summed over choices."
        ),
        "ECE, adaptive ECE, MCE": (
            "Gap between confidence and accuracy: mean over 15 bins of equal width, over 15 bins of equally many "
            "items, and largest in a bin of equal width. That bin often has very few items, so the marks of the MCE "
            "are the least reliable ones."
        ),
        "ECE floor": (
            "The ECE that the row's confidences have on average on as many items if they are perfectly calibrated, by "
            "simulation. An ECE near its floor says nothing against a row, and differences below it say little."
        ),
        "informative": (
            "A task tells methods apart if its best row beats the base model with a temperature by 3 standard errors "
            "of the NLL, paired by item. The best row is chosen on the same items, which helps it a little. Other "
            "tasks are in no pooled difference."
        ),
        "AUROC": "Probability that a right prediction is more confident than a wrong one.",
        "AURC, accuracy at 80 % coverage": (
            "Error rate averaged over all shares of items answered, the most confident first; accuracy on the most "
            "confident 80 %."
        ),
        "detection AUROC": (
            "Probability that an out-of-distribution item is more uncertain than a test item, by the entropy of the "
            "prediction or by the mutual information between prediction and parameters (only with draws). "
            "0.5 is chance."
        ),
        "cost": (
            "Training is the training loop alone. Prediction counts all draws; one deterministic pass is the same "
            "items without draws, on the same device."
        ),
    }
