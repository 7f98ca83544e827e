"""Log-reward of every prefix: Σ_k w_k log p_LM(z s_k | c_k) + log c(z).

The policy's adapter is disabled while a term is scored, context caches included. Values are untempered.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gfn_runner.data.conditions import Condition, Term
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.packing import score_prefixes
from gfn_runner.lm.pieces import GivenStrings
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.scoring import score_strings
from gfn_runner.lm.vocabulary import StringRule


class Constraint(Protocol):
    """A factor c(z) of the posterior that needs no language model."""

    def log_factor(self, lm: LanguageModel, condition: Condition, prefix: Sequence[int]) -> float:
        """Return log c of one prefix in nats; it must be finite.

        φ of a string with reward 0 would be −∞, and no gradient leads away from there. What must not
        be written gets a large penalty instead (−50 nats in the paper).
        """


@runtime_checkable
class BatchedConstraint(Constraint, Protocol):
    """A factor that is computed more efficiently for many prefixes at once, such as a classifier's."""

    def log_factors(
        self, lm: LanguageModel, asked: Sequence[tuple[Condition, Sequence[int]]]
    ) -> Sequence[float]:
        """Return log c of many prefixes in nats; the values equal those of :meth:`log_factor`."""


@runtime_checkable
class CheckableConstraint(Constraint, Protocol):
    """A constraint that a text either meets or does not."""

    def satisfied(self, condition: Condition, text: str) -> bool:
        """Return whether a text, without its terminator, meets the constraint."""


def log_reward(
    lm: LanguageModel,
    conditions: Sequence[Condition],
    trajectories: Trajectories,
    rule: StringRule,
    constraints: Sequence[Constraint] = (),
) -> Tensor:
    """Return untempered log R(z_1..z_i ⊤) of every prefix. Shape (B, S), nats, fp32.

    Args:
        lm: model whose :meth:`~LanguageModel.reference` scores the terms.
        conditions: indexed by ``trajectories.condition_B``; one with fewer terms than another has
            correspondingly fewer factors.
        rule: the rule for strings that the policy follows.

    Returns:
        Log-rewards; −inf where the string cannot end or has probability 0.
    """
    terminable_BS = rule.terminable_BS(trajectories)
    total_BS = torch.zeros(terminable_BS.shape, device=lm.device)
    with lm.reference():
        for terms, rows_N in _terms(conditions, trajectories):
            some = trajectories.rows(rows_N)
            _, weighted_NS = _term(lm, terms, some, rule, score_prefixes)
            total_BS[rows_N, : weighted_NS.shape[1]] += weighted_NS
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
    """Return the log-reward of whole strings only, and each term's log-probability without its weight.

    Returns:
        ``log_reward_B``, equal to :func:`log_reward` at each string's end, and
        ``log_p_BK`` = log p_LM(z s_k | c_k) of up to K terms, nats; NaN where a condition has fewer.
    """
    length_B1 = trajectories.length_B[:, None]
    terminable_BS = rule.terminable_BS(trajectories)
    ends_BS = terminable_BS & torch.zeros_like(terminable_BS).scatter(1, length_B1, True)
    total_B = torch.zeros(len(trajectories), device=lm.device)
    columns = []
    with lm.reference():
        for terms, rows_N in _terms(conditions, trajectories):
            some = trajectories.rows(rows_N)
            log_prob_N1, weighted_N1 = _term(lm, terms, some, rule, _score_ends)
            total_B[rows_N] += weighted_N1[:, 0]
            columns.append(torch.full_like(total_B, float("nan")))
            columns[-1][rows_N] = log_prob_N1[:, 0]
    for constraint in constraints:
        factor_BS = _constraint(constraint, lm, conditions, trajectories, ends_BS)
        total_B += factor_BS.gather(1, length_B1)[:, 0]
    log_p_BK = torch.stack(columns, dim=1) if columns else total_B.new_zeros(len(total_B), 0)
    return total_B.masked_fill(~ends_BS.any(dim=1), float("-inf")), log_p_BK


def terminal_log_reward(
    lm: LanguageModel,
    conditions: Sequence[Condition],
    trajectories: Trajectories,
    rule: StringRule,
    constraints: Sequence[Constraint] = (),
) -> Tensor:
    """Return :func:`log_reward` where each string ended, −inf at every other state. Shape (B, S).

    For objectives that compare whole strings: this takes one plain forward, where all prefixes with a
    long suffix would take many times as many tokens.
    """
    log_reward_B, _ = string_log_reward(lm, conditions, trajectories, rule, constraints)
    rows, tokens = trajectories.token_BT.shape
    nothing_BS = log_reward_B.new_full((rows, tokens + 1), float("-inf"))
    return nothing_BS.scatter(1, trajectories.length_B[:, None], log_reward_B[:, None])


def _terms(
    conditions: Sequence[Condition], trajectories: Trajectories
) -> Iterator[tuple[list[Term | None], Tensor]]:
    """Yield the conditions' first terms, second terms, …, with the rows whose condition has one."""
    n_terms_B = torch.tensor([len(c.terms) for c in conditions])[trajectories.condition_B.cpu()]
    for place in range(max(len(condition.terms) for condition in conditions)):
        rows_N = (n_terms_B > place).nonzero()[:, 0].to(trajectories.token_BT.device)
        if len(rows_N):
            yield [c.terms[place] if len(c.terms) > place else None for c in conditions], rows_N


def _score_ends(lm: LanguageModel, given: GivenStrings) -> Tensor:
    """Score whole strings in the format of prefix scores, with one column for the single state."""
    return score_strings(lm, given)[:, None]


def _term(
    lm: LanguageModel,
    terms: Sequence[Term | None],
    trajectories: Trajectories,
    rule: StringRule,
    score: Callable[[LanguageModel, GivenStrings], Tensor],
) -> tuple[Tensor, Tensor]:
    """Return log p_LM(z s | c) of one term per condition, and what it adds to log R. Shape (B, N)."""

    def scored(terms: Sequence[Term | None]) -> Tensor:
        # Missing terms get placeholders, which no row uses.
        contexts = [lm.encode_prompt(term.context) if term else () for term in terms]
        suffixes = [
            (lm.encode(term.suffix) if term else ()) or (rule.terminator,) for term in terms
        ]
        return score(lm, GivenStrings(contexts, suffixes, trajectories, rule))

    with lm.prompts_kept():
        log_prob_BN = scored(terms)
        penalty_BN = _rival_penalty(scored, terms, log_prob_BN, trajectories.condition_B)
    return log_prob_BN, _weighted(log_prob_BN, terms, trajectories.condition_B) - penalty_BN


def _weighted(log_prob_BN: Tensor, terms: Sequence[Term | None], condition_B: Tensor) -> Tensor:
    """Multiply each row by the weight of its condition's term."""
    weights = [term.weight if term else 0.0 for term in terms]
    weight_B = torch.tensor(weights, device=log_prob_BN.device)[condition_B]
    # A string that may not be written has reward 0 for every weight, including negative ones.
    impossible_BN = log_prob_BN.isneginf()
    weighted_BN = weight_B[:, None] * log_prob_BN.masked_fill(impossible_BN, 0.0)
    return weighted_BN.masked_fill(impossible_BN, float("-inf"))


def _rival_penalty(
    scored: Callable[[Sequence[Term | None]], Tensor],
    terms: Sequence[Term | None],
    log_prob_BN: Tensor,
    condition_B: Tensor,
) -> Tensor:
    """Return the nats to subtract where a rival is likelier than the suffix; shaped like ``log_prob_BN``.

    Both follow the same prefix, so p(z) cancels. Each rival takes one more forward.
    """
    rivals = [term.rivals if term else () for term in terms]
    beaten_BN = torch.zeros_like(log_prob_BN, dtype=torch.bool)
    for place in range(max(map(len, rivals))):
        # Conditions with fewer rivals are scored with their own suffix, and cannot lose by rounding.
        asked_C = torch.tensor([len(own) > place for own in rivals], device=log_prob_BN.device)
        replaced = [
            dataclasses.replace(term, suffix=own[place]) if term and len(own) > place else term
            for term, own in zip(terms, rivals, strict=True)
        ]
        beaten_BN |= asked_C[condition_B][:, None] & (scored(replaced) > log_prob_BN)
    penalties = [term.rival_penalty if term else 0.0 for term in terms]
    return beaten_BN * torch.tensor(penalties, device=log_prob_BN.device)[condition_B][:, None]


def _constraint(
    constraint: Constraint,
    lm: LanguageModel,
    conditions: Sequence[Condition],
    trajectories: Trajectories,
    terminable_BS: Tensor,
) -> Tensor:
    tokens, places = trajectories.token_BT.tolist(), trajectories.condition_B.tolist()
    states_N2 = terminable_BS.nonzero().tolist()
    asked = [(conditions[places[row]], tokens[row][:state]) for row, state in states_N2]
    if isinstance(constraint, BatchedConstraint):
        values = list(constraint.log_factors(lm, asked))
    else:
        values = [constraint.log_factor(lm, condition, prefix) for condition, prefix in asked]
    factor_BS = torch.zeros(terminable_BS.shape)
    for (row, state), (condition, _), value in zip(states_N2, asked, values, strict=True):
        if not math.isfinite(value):
            raise ValueError(
                f"{type(constraint).__name__}.log_factor gave {value} for condition "
                f"{condition.key!r}; it must be finite: use a penalty such as -50"
            )
        factor_BS[row, state] = value
    return factor_BS.to(lm.device)
