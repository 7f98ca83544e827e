"""Factors c(z) of a posterior that no language model gives: constraints on texts, illegal tokens, a user's
function, a table of strings.

A condition carries its :class:`TextConstraint` as the fact ``constraint``; one without it has the factor 1. Only
the decoded text of the prefix is judged.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from gfn_runner.data.conditions import Condition
from gfn_runner.errors import Problem
from gfn_runner.lm.classifier import classifier
from gfn_runner.lm.encoding import ids_holding
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


@dataclass(frozen=True)
class IllegalTokens:
    """log c(z) = −penalty × number of tokens whose text holds one of ``texts``.

    Hu et al. 2024, section 4.1, take 50 nats. Tokens that are never to be written are better taken
    out of the vocabulary (``Task.forbidden_texts``): then no mass has to be moved away from them.

    Attributes:
        texts: none of them empty.
        penalty: nats, above 0.
    """

    texts: tuple[str, ...]
    penalty: float = 50.0

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """log c of one prefix, nats."""
        illegal = ids_holding(lm.tokenizer, self.texts)
        return -self.penalty * sum(token in illegal for token in prefix)


@dataclass(frozen=True)
class Validator:
    """log c(z) = 0 where the function returns a true value, else −penalty.

    Attributes:
        function: import path ``package.module.name`` of a function from a text to a truth value.
        penalty: nats, above 0.
    """

    function: str
    penalty: float = 10.0

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """log c of one prefix, nats."""
        return 0.0 if imported(self.function)(lm.decode(prefix)) else -self.penalty


def imported(path: str) -> Callable[[str], bool]:
    """The function at an import path. Raises ``ImportError`` or ``AttributeError``."""
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ImportError("no module is named")
    return getattr(importlib.import_module(module_name), name)


def validator_problems(key: str, path: str) -> Iterator[Problem]:
    """Whether there is such a function; for ``Task.problems``."""
    try:
        found = callable(imported(path))
    except (ImportError, AttributeError, ValueError) as error:
        yield Problem(key, f"cannot import {path!r}: {error}", "package.module.function, or null")
        return
    if not found:
        yield Problem(key, f"{path} is no function", "a function from a text to True or False")


# A table is encoded once for a model; conditions of one name may have different tables.
_Ids = dict[tuple[int, ...], float]
_IDS: WeakKeyDictionary[LanguageModel, dict[str, tuple[Mapping[str, float], _Ids]]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True)
class TableFactor:
    """log c(z) = log probability of z in the condition's fact ``table``, else a floor.

    A value is one string of tokens, the one that the tokenizer writes its text with: other
    spellings of the same text are no values, or the table would count them twice.

    The floor is −penalty − n log V for n tokens out of V: finite, so that φ is (see ``Constraint``),
    and summable. There are V^n strings of n tokens, so those of one length have the mass
    exp(−penalty) in total. Under a constant floor they would outweigh the table from some length on.

    Attributes:
        penalty: nats, above 0.
    """

    penalty: float

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """log c of one prefix, nats."""
        known = _IDS.setdefault(lm, {})
        table: Mapping[str, float] = condition.facts["table"]
        if condition.key not in known or known[condition.key][0] is not table:
            ids = {lm.encode(text): value for text, value in table.items()}
            known[condition.key] = (table, ids)
        floor = -self.penalty - len(prefix) * math.log(lm.vocab_size)
        return known[condition.key][1].get(tuple(prefix), floor)
