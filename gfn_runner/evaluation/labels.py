"""Predicted labels of a condition's samples: by vote, posterior predictive, and individually."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gfn_runner.data.samples import ConditionSamples
from gfn_runner.metrics.accuracy import majority, posterior_predictive


def label_accuracy(sample: ConditionSamples, labels: Sequence[str]) -> dict[str, float]:
    """Return accuracies for one review, and the mean log p of the right label in nats."""
    right = list(labels).index(str(sample.condition.answer))
    singles = [_log_softmax(row) for row in sample.answer_log_probs]
    predicted = posterior_predictive(sample.answer_log_probs).argmax()
    chosen = [_likeliest(row) for row in singles]
    judged = {
        "predictive_accuracy": float(predicted == right),
        "single_accuracy": chosen.count(right) / len(chosen),
        "label_log_prob": sum(row[right] for row in singles) / len(singles),
    }
    # Kinds of samples that were not drawn have no accuracy.
    if sample.vote_answer_log_probs:
        voted = majority([_likeliest(row) for row in sample.vote_answer_log_probs])
        judged["vote_accuracy"] = float(voted == right)
    if sample.greedy_answer_log_probs:
        greedy = _likeliest(sample.greedy_answer_log_probs)
        judged["greedy_accuracy"] = float(greedy == right)
    return judged


def _likeliest(values: Sequence[float]) -> int:
    """Return the index of the largest value; the first one in a tie."""
    return max(range(len(values)), key=values.__getitem__)


def _log_softmax(values: Sequence[float]) -> list[float]:
    highest = max(values)
    norm = highest + math.log(sum(math.exp(value - highest) for value in values))
    return [value - norm for value in values]
