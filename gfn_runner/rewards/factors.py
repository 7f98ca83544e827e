"""Factors c(z) of a posterior that are not language model terms.

They are constraints on texts, illegal tokens, a user's function and a table of strings. A condition stores
its :class:`TextConstraint`, which judges decoded text, as the fact ``constraint``; else the factor is 1.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from gfn_runner.data.conditions import Condition
from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.classifier import classifier
from gfn_runner.lm.encoding import ids_holding
from gfn_runner.rewards.text_constraints import ClassifierLabel, TextConstraint

if TYPE_CHECKING:
    from gfn_runner.lm.policy import LanguageModel

CONSTRAINT = "constraint"

# Nats per unmet constraint. The posterior mass that is left on texts without a required word is about
# exp(-penalty) / p_LM(the word occurs). Fitting words occur with probability exp(-4) to exp(-12), so 20
# leaves less than 0.04 % even for the rarest. More gains nothing and makes log R steeper: it jumps by
# the penalty at the first prefix that contains the word, and a squared loss by its square.
PENALTY = 20.0


def constraint_of(condition: Condition) -> TextConstraint | None:
    """Return the constraint on a condition's strings, if there is one."""
    return condition.facts.get(CONSTRAINT)


@dataclass(frozen=True)
class ConstraintPenalty:
    """Factor log c(z) = −penalty × violations: missing words, no match, a length out of bounds.

    Attributes:
        penalty: nats per violation.
    """

    penalty: float = PENALTY

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """Return log c of one prefix in nats, between −penalty × (number of words + 2) and 0.

        Raises:
            UserError: if a pattern takes too long.
        """
        constraint = constraint_of(condition)
        if constraint is None:
            return 0.0
        return -self.penalty * constraint.violations(lm.decode(prefix))

    def satisfied(self, condition: Condition, text: str) -> bool:
        """Return whether a text meets the constraint, apart from its classifier, which is not yes or no."""
        constraint = constraint_of(condition)
        return constraint is None or constraint.satisfied(text)


@dataclass(frozen=True)
class ClassifierFactor:
    """Factor log c(z) = weight × log p(label | z) of a sequence classifier."""

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """Return log c of one prefix in nats."""
        return self.log_factors(lm, [(condition, prefix)])[0]

    def log_factors(
        self, lm: LanguageModel, asked: Sequence[tuple[Condition, Sequence[int]]]
    ) -> list[float]:
        """Return log c of many prefixes in nats; every distinct text is classified once.

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
        """Return p(label | text) of texts of one condition, in 0..1; ``None`` if it has no classifier."""
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
    """Factor log c(z) = −penalty × number of tokens whose text contains one of ``texts``.

    Hu et al. 2024, section 4.1, use 50 nats. Tokens that must never be written are better removed from
    the vocabulary (``Task.forbidden_texts``): then no probability mass has to be moved away from them.

    Attributes:
        texts: illegal texts, none of them empty.
        penalty: nats per token, above 0.
    """

    texts: tuple[str, ...]
    penalty: float = 50.0

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """Return log c of one prefix in nats."""
        illegal = ids_holding(lm.tokenizer, self.texts)
        return -self.penalty * sum(token in illegal for token in prefix)

    def satisfied(self, condition: Condition, text: str) -> bool:
        return not any(illegal in text for illegal in self.texts)


@dataclass(frozen=True)
class Validator:
    """Factor log c(z) = 0 if the function returns a true value, else −penalty.

    Attributes:
        function: import path ``package.module.name`` of a function from a text to a truth value.
        penalty: nats, above 0.
    """

    function: str
    penalty: float = 10.0

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """Return log c of one prefix in nats."""
        return 0.0 if self.satisfied(condition, lm.decode(prefix)) else -self.penalty

    def satisfied(self, condition: Condition, text: str) -> bool:
        try:
            return bool(imported(self.function)(text))
        except Exception as error:
            raise UserError.one(
                self.function,
                f"it raises {type(error).__name__}: {error}, for the text {text!r}",
                "True or False for every text",
            ) from error


def imported(path: str) -> Callable[[str], bool]:
    """Import the function at an import path. Raises whatever its module raises."""
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise ImportError("no module is named")
    return getattr(importlib.import_module(module_name), name)


def validator_problems(key: str, path: str) -> Iterator[Problem]:
    """Yield a problem if there is no such function; for ``Task.problems``."""
    try:
        found = callable(imported(path))
    except Exception as error:  # the module is the user's
        what = f"cannot import {path!r}: {type(error).__name__}: {error}"
        yield Problem(key, what, "package.module.function, or null")
        return
    if not found:
        yield Problem(key, f"{path} is not a function", "a function from a text to True or False")


# A table is encoded once per model; conditions with the same key may have different tables.
_Ids = dict[tuple[int, ...], float]
_IDS: WeakKeyDictionary[LanguageModel, dict[str, tuple[Mapping[str, float], _Ids]]] = (
    WeakKeyDictionary()
)


@dataclass(frozen=True)
class TableFactor:
    """Factor log c(z) = log-probability of z in the condition's fact ``table``, else a floor.

    An entry stands for one sequence of tokens, the tokenizer's encoding of its text: other tokenizations
    of the same text do not count as the entry, or the table would count it twice.

    The floor is −penalty − n log V for n tokens out of V: finite, so that φ is (see ``Constraint``),
    and summable. There are V^n strings of n tokens, so those of one length have a total mass of
    exp(−penalty). With a constant floor they would outweigh the table from some length on.

    Attributes:
        penalty: nats, above 0.
    """

    penalty: float

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """Return log c of one prefix in nats."""
        known = _IDS.setdefault(lm, {})
        table: Mapping[str, float] = condition.facts["table"]
        if condition.key not in known or known[condition.key][0] is not table:
            ids = {lm.encode(text): value for text, value in table.items()}
            known[condition.key] = (table, ids)
        floor = -self.penalty - len(prefix) * math.log(lm.vocab_size)
        return known[condition.key][1].get(tuple(prefix), floor)

    def satisfied(self, condition: Condition, text: str) -> bool:
        return text in condition.facts["table"]
