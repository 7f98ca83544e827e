"""A condition and the terms of its posterior.

Letters of shapes: B rows (trajectories), T tokens, S = T + 1 states, C conditions, V vocabulary.
State ``i`` of a trajectory is its prefix of ``i`` tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class Chat(str):
    """Messages of a conversation in place of a text; the model's chat template makes a text of them.

    As a string it is a JSON list of objects with ``role`` and ``content``, so that it can stand wherever
    a prompt is shown, stored or compared.
    """

    @classmethod
    def of(cls, messages: Sequence[Mapping[str, str]]) -> Chat:
        """The chat of some messages, the first one first."""
        plain = [{"role": m["role"], "content": m["content"]} for m in messages]
        return cls(json.dumps(plain, ensure_ascii=False))

    @property
    def messages(self) -> list[dict[str, str]]:
        """Each with ``role`` and ``content``."""
        return json.loads(self)


@dataclass(frozen=True)
class Term:
    """One factor of a posterior: ``p_LM(z suffix | context) ** weight``.

    Attributes:
        context: text before the sampled string, or a :class:`Chat`.
        suffix: text after it. The empty suffix stands for the terminator.
        weight: exponent of the factor.
        rivals: other suffixes, over which this one is to win.
        rival_penalty: nats taken from the log-reward, once, where a rival is likelier after ``z`` than
            the suffix itself; whatever the weight.
    """

    context: str
    suffix: str = ""
    weight: float = 1.0
    rivals: tuple[str, ...] = ()
    rival_penalty: float = 0.0


@dataclass(frozen=True)
class Condition:
    """One posterior to sample from.

    Attributes:
        key: unique name, stable between runs (the replay buffer is kept by it).
        prompt: what the policy reads before it samples: a text, or a :class:`Chat`.
        terms: the factors of the reward.
        demonstrations: strings that are known to be good; they seed the replay buffer.
        answer: what a right sample leads to, in the task's own form; ``None`` if unknown.
        weight: relative probability of being drawn for a training step.
        group: the evaluation set it belongs to.
        facts: anything else that the task needs to judge a sample.
    """

    key: str
    prompt: str
    terms: tuple[Term, ...]
    demonstrations: tuple[str, ...] = ()
    answer: object = None
    weight: float = 1.0
    group: str = "train"
    facts: Mapping[str, Any] = field(default_factory=dict)
