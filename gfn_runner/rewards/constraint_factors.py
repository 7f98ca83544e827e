"""Constraint factors c(z) of a posterior, from the constraint of a condition.

A condition carries its :class:`TextConstraint` as the fact ``constraint``; one without it has the factor 1. Only
the decoded text of the prefix is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gfn_runner.data.conditions import Condition
from gfn_runner.lm.classifier import classifier
from gfn_runner.rewards.text_constraints import ClassifierLabel, TextConstraint

if TYPE_CHECKING:
    from gfn_runner.lm.policy import LanguageModel

CONSTRAINT = "constraint"

# Nats for each constraint that is not met. What is left of the posterior's mass on texts that miss a word
# is about exp(-penalty) / p_LM(the word occurs). Words that fit occur with exp(-4) to exp(-12), so 20
# leaves less than 0.04 % even of the rarest. More buys nothing and makes log R steeper: the first
# prefix that holds the word jumps by the penalty, and a squared loss by its square.
PENALTY = 20.0


def constraint_of(condition: Condition) -> TextConstraint | None:
    """The constraint on a condition's strings, if there is one."""
    return condition.facts.get(CONSTRAINT)


@dataclass(frozen=True)
class ConstraintPenalty:
    """log c(z) = −penalty × violations: missing words, no match, a length out of bounds.

    Attributes:
        penalty: nats for each violation.
    """

    penalty: float = PENALTY

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """log c of one prefix, nats; between 0 and −penalty × (number of words + 2).

        Raises:
            UserError: if a pattern takes too long.
        """
        constraint = constraint_of(condition)
        if constraint is None:
            return 0.0
        return -self.penalty * constraint.violations(lm.decode(prefix))

    def satisfied(self, condition: Condition, text: str) -> bool:
        """Whether a text meets all of it but the classifier's, which has no yes or no."""
        constraint = constraint_of(condition)
        return constraint is None or constraint.satisfied(text)


@dataclass(frozen=True)
class ClassifierFactor:
    """log c(z) = weight × log p(label | z) of a sequence classifier."""

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """log c of one prefix, nats."""
        return self.log_factors(lm, [(condition, prefix)])[0]

    def log_factors(
        self, lm: LanguageModel, asked: Sequence[tuple[Condition, Sequence[int]]]
    ) -> list[float]:
        """log c of many prefixes, nats; every different text is classified once.

        Raises:
            UserError: if a classifier cannot be loaded or has no such label.
        """
        texts = [lm.decode(prefix) if _label(c) else "" for c, prefix in asked]
        values = [0.0] * len(asked)
        names = {label.name for condition, _ in asked if (label := _label(condition))}
        for name in sorted(names):
            model = classifier(name, str(lm.device))
            members = [
                (place, label)
                for place, (condition, _) in enumerate(asked)
                if (label := _label(condition)) and label.name == name
            ]
            different = sorted({texts[place] for place, _ in members})
            rows = dict(zip(different, model.log_probs(different).tolist(), strict=True))
            for place, label in members:
                values[place] = label.weight * rows[texts[place]][model.index(label.label)]
        return values

    def probabilities(self, condition: Condition, texts: Sequence[str]) -> list[float] | None:
        """p(label | text) of texts of one condition, in 0..1; ``None`` where none is asked for."""
        label = _label(condition)
        if label is None:
            return None
        model = classifier(label.name)
        return model.log_probs(texts)[:, model.index(label.label)].exp().tolist()


def _label(condition: Condition) -> ClassifierLabel | None:
    constraint = constraint_of(condition)
    return None if constraint is None else constraint.classifier
