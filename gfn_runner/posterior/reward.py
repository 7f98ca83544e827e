"""The log-reward of every prefix: Σ_k w_k log p_LM(z s_k | c_k) + log c(z); knows no objective.

The adapter is off while a term is scored, caches of contexts included. Values are untempered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.scoring import score_prefixes, score_strings
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.types import Condition, Term, Trajectories


class Constraint(Protocol):
    """A factor c(z) of the posterior that needs no language model."""

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """log c of one prefix, nats; finite.

        φ of a string of reward 0 would be −∞, and no gradient leads away from there. What must not
        be written gets a large penalty instead (the paper's is −50 nats).
        """


def log_reward(
    lm: LanguageModel,
    conditions: Sequence[Condition],
    trajectories: Trajectories,
    rule: StringRule,
    constraints: Sequence[Constraint] = (),
) -> Tensor:
    """Untempered log R(z_1..z_i ⊤) of every prefix. Shape (B, S), nats, fp32.

    Args:
        lm: its base model is the reward's.
        conditions: indexed by ``trajectories.condition_B``; all have the same number of terms.
        trajectories: the strings.
        rule: the same that the policy writes by.
        constraints: further factors.

    Returns:
        −inf where the string cannot end or has probability 0.
    """
    terminable_BS = rule.terminable_BS(trajectories)
    total_BS = torch.zeros(terminable_BS.shape, device=lm.device)
    with lm.reference():
        for terms in _by_place(conditions):
            log_prob_BS = score_prefixes(lm, *_encoded(lm, terms, rule), trajectories, rule)
            total_BS += _weighted(log_prob_BS, terms, trajectories)
    for constraint in constraints:
        total_BS += _constraint(constraint, lm, conditions, trajectories, terminable_BS)
    return total_BS.masked_fill(~terminable_BS, float("-inf"))


def string_log_reward(
    lm: LanguageModel,
    conditions: Sequence[Condition],
    trajectories: Trajectories,
    rule: StringRule,
    constraints: Sequence[Constraint] = (),
) -> tuple[Tensor, Tensor]:
    """The log-reward of whole strings alone, and what each term contributes before its weight.

    Returns:
        ``log_reward_B``, as :func:`log_reward` gives it at each string's end, and
        ``log_p_BK`` = log p_LM(z s_k | c_k) for the K terms, nats.
    """
    length_B1 = trajectories.length_B[:, None]
    ends_BS = torch.zeros_like(rule.terminable_BS(trajectories)).scatter(1, length_B1, True)
    ends_BS &= rule.terminable_BS(trajectories)
    total_B = torch.zeros(len(trajectories), device=lm.device)
    columns = []
    with lm.reference():
        for terms in _by_place(conditions):
            log_prob_B = score_strings(lm, *_encoded(lm, terms, rule), trajectories, rule)
            total_B += _weighted(log_prob_B[:, None], terms, trajectories)[:, 0]
            columns.append(log_prob_B)
    for constraint in constraints:
        factor_BS = _constraint(constraint, lm, conditions, trajectories, ends_BS)
        total_B += factor_BS.gather(1, length_B1)[:, 0]
    log_p_BK = torch.stack(columns, dim=1) if columns else total_B.new_zeros(len(total_B), 0)
    return total_B.masked_fill(~ends_BS.any(dim=1), float("-inf")), log_p_BK


def _by_place(conditions: Sequence[Condition]) -> Iterator[list[Term]]:
    """First terms of all conditions, second terms, …"""
    n_terms = {len(condition.terms) for condition in conditions}
    if len(n_terms) != 1:
        raise ValueError(f"conditions of one batch need equally many terms, not {sorted(n_terms)}")
    for place in range(n_terms.pop()):
        yield [condition.terms[place] for condition in conditions]


def _encoded(
    lm: LanguageModel, terms: Sequence[Term], rule: StringRule
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    contexts = [lm.encode_prompt(term.context) for term in terms]
    suffixes = [lm.encode(term.suffix) or (rule.terminator,) for term in terms]
    return contexts, suffixes


def _weighted(log_prob_BN: Tensor, terms: Sequence[Term], trajectories: Trajectories) -> Tensor:
    """Each row times the weight of its condition's term."""
    weight_C = torch.tensor([term.weight for term in terms], device=log_prob_BN.device)
    # A string that may not be written has reward 0 under every weight, a negative one included.
    impossible_BN = log_prob_BN.isneginf()
    weighted_BN = weight_C[trajectories.condition_B][:, None] * log_prob_BN.masked_fill(
        impossible_BN, 0.0
    )
    return weighted_BN.masked_fill(impossible_BN, float("-inf"))


def _constraint(
    constraint: Constraint,
    lm: LanguageModel,
    conditions: Sequence[Condition],
    trajectories: Trajectories,
    terminable_BS: Tensor,
) -> Tensor:
    factor_BS = torch.zeros(terminable_BS.shape)
    tokens, places = trajectories.token_BT.tolist(), trajectories.condition_B.tolist()
    for row, state in terminable_BS.nonzero().tolist():
        condition = conditions[places[row]]
        value = constraint.log_factor(lm, condition, tokens[row][:state])
        if not math.isfinite(value):
            raise ValueError(
                f"{type(constraint).__name__}.log_factor gave {value} for condition "
                f"{condition.key!r}; it must be finite: use a penalty such as -50"
            )
        factor_BS[row, state] = value
    return factor_BS.to(lm.device)
