"""The log-reward of every prefix: Σ_k w_k log p_LM(z s_k | c_k) + log c(z); knows no objective.

The adapter is off while a term is scored, caches of contexts included. Values are untempered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.scoring import score_prefixes
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
    n_terms = {len(condition.terms) for condition in conditions}
    if len(n_terms) != 1:
        raise ValueError(f"conditions of one batch need equally many terms, not {sorted(n_terms)}")
    terminable_BS = rule.terminable_BS(trajectories)
    total_BS = torch.zeros(terminable_BS.shape, device=lm.device)
    with lm.reference():
        for place in range(n_terms.pop()):
            total_BS += _term(lm, conditions, place, trajectories, rule)
    for constraint in constraints:
        total_BS += _constraint(constraint, lm, conditions, trajectories, terminable_BS)
    return total_BS.masked_fill(~terminable_BS, float("-inf"))


def _term(
    lm: LanguageModel,
    conditions: Sequence[Condition],
    place: int,
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    terms = [condition.terms[place] for condition in conditions]
    contexts = [lm.encode_prompt(term.context) for term in terms]
    suffixes = [lm.encode(term.suffix) or (rule.terminator,) for term in terms]
    log_prob_BS = score_prefixes(lm, contexts, suffixes, trajectories, rule)
    weight_C = torch.tensor([term.weight for term in terms], device=lm.device)
    # A string that may not be written has reward 0 under every weight, a negative one included.
    impossible_BS = log_prob_BS.isneginf()
    weighted_BS = weight_C[trajectories.condition_B][:, None] * log_prob_BS.masked_fill(
        impossible_BS, 0.0
    )
    penalty_BS = _rival_penalty(lm, terms, log_prob_BS, trajectories, rule)
    return (weighted_BS - penalty_BS).masked_fill(impossible_BS, float("-inf"))


def _rival_penalty(
    lm: LanguageModel,
    terms: Sequence[Term],
    log_prob_BS: Tensor,
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """Nats to take off where a rival of the suffix is likelier than the suffix. Shape (B, S).

    Both stand behind the same prefix, so that p(z) is in both and decides nothing. Each rival takes one
    more forward; a model that scores no rivals pays nothing.

    Args:
        terms: of each condition.
        log_prob_BS: log p(z suffix | context), unweighted.
    """
    beaten_BS = torch.zeros_like(log_prob_BS, dtype=torch.bool)
    for place in range(max(len(term.rivals) for term in terms)):
        # A condition with fewer rivals meets its own suffix, and cannot lose to rounding.
        asked_C = torch.tensor([len(term.rivals) > place for term in terms], device=lm.device)
        texts = [t.rivals[place] if len(t.rivals) > place else t.suffix for t in terms]
        rival_BS = score_prefixes(
            lm,
            [lm.encode_prompt(term.context) for term in terms],
            [lm.encode(text) or (rule.terminator,) for text in texts],
            trajectories,
            rule,
        )
        beaten_BS |= asked_C[trajectories.condition_B][:, None] & (rival_BS > log_prob_BS)
    penalty_C = torch.tensor([term.rival_penalty for term in terms], device=lm.device)
    return beaten_BS * penalty_C[trajectories.condition_B][:, None]


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
