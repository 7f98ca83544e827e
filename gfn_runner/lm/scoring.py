"""Log-probabilities of given strings, for the policy and reward terms; gradients flow if enabled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gfn_runner.data.trajectories import PolicyScores, Trajectories
from gfn_runner.lm.cache import PromptCache
from gfn_runner.lm.log_probs import chosen_log_probs, string_log_probs
from gfn_runner.lm.merging import folded
from gfn_runner.lm.pieces import GivenStrings, Ids, by_length, scored_in_pieces, wider
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule


def trunk_logits(
    lm: LanguageModel, prompt: PromptCache, token_BT: Tensor, length_B: Tensor
) -> Tensor:
    """Return the logits after the prompt and after each token. Shape (B, S, V). The cache grows.

    Args:
        prompt: cache of the prompts, changed in place.
        token_BT: right-padded token ids.
        length_B: number of tokens of each row.
    """
    first_B1V, width = prompt.last_logits_NV[:, None], token_BT.shape[1]
    if width == 0:
        if lm.lockstep is None:
            return first_B1V
        # Ranks with sharded weights must run equally many forwards with gradients, whatever their strings.
        token_BT = wider(token_BT, 1, 0)
    steps_T = torch.arange(token_BT.shape[1], device=token_BT.device)
    # Padding is on the right of a causal trunk, so no real token attends to it.
    mask = torch.cat([prompt.mask_NP, torch.ones_like(token_BT, dtype=torch.bool)], dim=1)
    # Padding must not get positions that a model does not have.
    position_BT = prompt.length_N[:, None] + torch.minimum(
        steps_T, (length_B[:, None] - 1).clamp(min=0)
    )
    logits_BSV = torch.cat([first_B1V, lm.extend(prompt, token_BT, mask, position_BT)], dim=1)
    return logits_BSV[:, : width + 1]


def score_policy(
    lm: LanguageModel,
    prompts: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
    value: nn.Module | None = None,
) -> PolicyScores:
    """Score trajectories under the model with its active adapter; gradients flow if enabled.

    Args:
        lm: the model; each prompt runs once and its cache is shared by its rows.
        prompts: token ids per condition.
        trajectories: ``condition_B`` indexes ``prompts``.
        value: value head on the output layer's inputs, (N, S, H) → (N, S, 1), to evaluate as well.
    """
    width = trajectories.token_BT.shape[1]
    n_string = int(trajectories.length_B.sum())
    recomputes = torch.is_grad_enabled() and n_string > (lm.recompute_above or n_string)
    # Recomputation must use the weights of the first forward: those that are not merged with the adapter.
    weights = nullcontext() if recomputes else folded(lm.model, n_string + sum(map(len, prompts)))

    def states_read() -> AbstractContextManager[list[Tensor]]:
        return nullcontext([]) if value is None else lm.final_states()

    with weights:
        with states_read() as of_prompts:
            prompt = lm.prefill(prompts)

        def score(rows: Trajectories) -> tuple[Tensor, ...]:
            with states_read() as of_rows:
                selected = prompt.select(rows.condition_B)
                logits_NSV = trunk_logits(lm, selected, rows.token_BT, rows.length_B)
            log_pf_NT, log_pf_stop_NS = string_log_probs(logits_NSV, rows, rule)
            log_pf_stop_NS = log_pf_stop_NS.masked_fill(rule.forced_BS(rows), 0.0)
            scored = (wider(log_pf_NT, width, 0.0), wider(log_pf_stop_NS, width + 1, 0.0))
            if value is None:
                return scored
            state_NSH = torch.cat([of_prompts[0][:, -1:][rows.condition_B], *of_rows], dim=1)
            value_NS = value(state_NSH[:, : logits_NSV.shape[1]].float())[..., 0]
            return (*scored, wider(value_NS, width + 1, 0.0))

        def score_piece(rows: Trajectories) -> tuple[Tensor, ...]:
            if recomputes:
                return checkpoint(score, rows, use_reentrant=False, preserve_rng_state=False)
            return score(rows)

        log_pf_BT, log_pf_stop_BS, *value_BS = scored_in_pieces(
            _policy_pieces(lm, trajectories, max(map(len, prompts)), recomputes), score_piece
        )
    return PolicyScores(log_pf_BT, log_pf_stop_BS, rule.terminable_BS(trajectories), *value_BS)


def _runs_in_step(lm: LanguageModel) -> bool:
    """Return whether ranks with sharded weights must run equally many forwards, as with gradients."""
    return lm.lockstep is not None and torch.is_grad_enabled()


def _policy_pieces(
    lm: LanguageModel, trajectories: Trajectories, around: int, recomputes: bool
) -> Iterator[tuple[Tensor, Trajectories]]:
    """Yield rows that share a forward of the policy, after prompts of up to ``around`` tokens."""
    if _runs_in_step(lm):
        yield torch.arange(len(trajectories), device=lm.device), trajectories
    elif recomputes:
        yield from by_length(trajectories, lambda length: length + 1, lm.recompute_above)
    elif torch.is_grad_enabled():
        yield from by_length(trajectories)
    else:
        yield from by_length(
            trajectories, lambda length: around + length, lm.max_tokens_per_forward
        )


def score_suffixes(lm: LanguageModel, given: GivenStrings) -> Tensor:
    """Return log p(suffix | context z) of whole strings z, nats. Shape (B,). Gradients flow if enabled.

    This is the value of :func:`score_prefixes` at the string's end minus log p(z | context).
    """
    return _whole_strings(lm, given)[1]


@torch.no_grad()
def score_strings(lm: LanguageModel, given: GivenStrings) -> Tensor:
    """Return log p(z suffix | context) of whole strings. Shape (B,), nats.

    This is the value of :func:`score_prefixes` at each string's end, without scoring shorter prefixes;
    −inf where the string cannot end there.
    """
    string_B, suffix_B = _whole_strings(lm, given)
    can_end_B = given.trajectories.at_ends(given.terminable_BS)
    return (string_B + suffix_B).masked_fill(~can_end_B, float("-inf"))


def _whole_strings(lm: LanguageModel, given: GivenStrings) -> tuple[Tensor, ...]:
    """Return log p(z | context) of the actions and log p(suffix | context z), piecewise. Shapes (B,)."""
    given = given.used()
    prompts = lm.prefill(given.contexts)
    around = max(map(len, given.suffixes)) + max(map(len, given.contexts))
    if _runs_in_step(lm):
        pieces = _policy_pieces(lm, given.trajectories, around, recomputes=False)
    else:
        pieces = by_length(
            given.trajectories, lambda length: around + length, lm.max_tokens_per_forward
        )
    return scored_in_pieces(pieces, lambda rows: whole_rows(lm, prompts, given.of(rows)))


def whole_rows(
    lm: LanguageModel, prompts: PromptCache, given: GivenStrings
) -> tuple[Tensor, Tensor]:
    """Score like :func:`_whole_strings`, in one forward after cached contexts, which stay unchanged."""
    trajectories, rule = given.trajectories, given.rule
    suffix_BM, mask_BM = given.padded_suffixes()
    n_suffix, states = suffix_BM.shape[1], trajectories.token_BT.shape[1] + 1
    # The suffix follows right after each row's own end; its last token is only predicted, never read.
    place_BM = trajectories.length_B[:, None] + torch.arange(n_suffix, device=lm.device)
    joined_BT = torch.nn.functional.pad(trajectories.token_BT, (0, n_suffix))
    joined_BT = joined_BT.scatter(1, place_BM, suffix_BM)[:, :-1]
    n_read_B = trajectories.length_B + mask_BM.sum(dim=1) - 1
    prompt = prompts.select(trajectories.condition_B)
    logits_BSV = trunk_logits(lm, prompt, joined_BT, n_read_B)
    log_p_BT, _ = string_log_probs(logits_BSV[:, :states], trajectories, rule)
    index_BMV = place_BM[..., None].expand(-1, -1, logits_BSV.shape[-1])
    logits_BMV = logits_BSV.gather(1, index_BMV)
    log_p_BM = chosen_log_probs(logits_BMV, suffix_BM)
    # The terminator is normalized under the rule for strings, as in _first_suffix_token.
    log_stop_B = rule.log_probs(logits_BMV[:, 0])[:, rule.terminator]
    first_B = torch.where(suffix_BM[:, 0] == rule.terminator, log_stop_B, log_p_BM[:, 0])
    return log_p_BT.sum(dim=1), first_B + (log_p_BM * mask_BM)[:, 1:].sum(dim=1)
