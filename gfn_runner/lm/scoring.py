"""Log-probabilities of given strings: the policy's and a term's, with gradients if enabled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gfn_runner.data.trajectories import PolicyScores, Trajectories
from gfn_runner.lm.log_probs import chosen_log_probs, string_log_probs
from gfn_runner.lm.merging import folded
from gfn_runner.lm.pieces import Ids, by_length, in_order, used_conditions, wider
from gfn_runner.lm.policy import LanguageModel, PromptCache
from gfn_runner.lm.prefixes import padded_suffixes
from gfn_runner.lm.vocabulary import StringRule


def trunk_logits(
    lm: LanguageModel, prompt: PromptCache, token_BT: Tensor, length_B: Tensor
) -> Tensor:
    """Logits after the prompt and after each token. Shape (B, S, V). The cache grows.

    Args:
        lm: the model.
        prompt: changed in place.
        token_BT: right-padded.
        length_B: tokens of each row.
    """
    first_B1V = prompt.last_logits_NV[:, None]
    if token_BT.shape[1] == 0:
        return first_B1V
    steps_T = torch.arange(token_BT.shape[1], device=token_BT.device)
    # Padding is at the right of a causal trunk: nothing that counts can see it.
    mask = torch.cat([prompt.mask_NP, torch.ones_like(token_BT, dtype=torch.bool)], dim=1)
    # Nor may it ask for positions that a model does not have.
    position_BT = prompt.length_N[:, None] + torch.minimum(
        steps_T, (length_B[:, None] - 1).clamp(min=0)
    )
    return torch.cat([first_B1V, lm.extend(prompt, token_BT, mask, position_BT)], dim=1)


def score_policy(
    lm: LanguageModel, prompts: Sequence[Ids], trajectories: Trajectories, rule: StringRule
) -> PolicyScores:
    """Score trajectories under the policy as it is switched now; gradients flow if enabled.

    Args:
        lm: the model; each prompt runs once and its cache is shared by its rows.
        prompts: token ids per condition.
        trajectories: ``condition_B`` indexes ``prompts``.
        rule: the strings' rule.
    """
    width = trajectories.token_BT.shape[1]
    n_string = int(trajectories.length_B.sum())
    recomputes = torch.is_grad_enabled() and n_string > (lm.recompute_above or n_string)
    # What is computed again must meet the weights that it met: those apart from their adapter.
    weights = nullcontext() if recomputes else folded(lm.model, n_string + sum(map(len, prompts)))
    with weights:
        prompt = lm.prefill(prompts)

        def score(rows: Trajectories) -> tuple[Tensor, Tensor]:
            token_NT = (
                rows.token_BT if lm.lockstep is None else wider(rows.token_BT, max(1, width), 0)
            )
            selected = prompt.select(rows.condition_B)
            logits_NSV = trunk_logits(lm, selected, token_NT, rows.length_B)
            states = rows.token_BT.shape[1] + 1
            log_pf_NT, log_pf_stop_NS = string_log_probs(logits_NSV[:, :states], rows, rule)
            log_pf_stop_NS = log_pf_stop_NS.masked_fill(rule.forced_BS(rows), 0.0)
            return wider(log_pf_NT, width, 0.0), wider(log_pf_stop_NS, width + 1, 0.0)

        actions, stops, places = [], [], []
        for index_N, rows in _policy_pieces(lm, trajectories, recomputes):
            if recomputes:
                scored = checkpoint(score, rows, use_reentrant=False, preserve_rng_state=False)
            else:
                scored = score(rows)
            actions.append(scored[0])
            stops.append(scored[1])
            places.append(index_N)
    return PolicyScores(
        log_pf_BT=in_order(actions, places),
        log_pf_stop_BS=in_order(stops, places),
        terminable_BS=rule.terminable_BS(trajectories),
    )


def _policy_pieces(
    lm: LanguageModel, trajectories: Trajectories, recomputes: bool
) -> Iterator[tuple[Tensor, Trajectories]]:
    """Rows that share a forward of the policy."""
    if lm.lockstep is not None:
        # Ranks that share weights run equally many forwards with gradients, whatever their strings.
        yield torch.arange(len(trajectories), device=lm.device), trajectories
    elif recomputes:
        yield from by_length(trajectories, lambda length: length + 1, lm.recompute_above)
    else:
        yield from by_length(trajectories)


def score_suffixes(
    lm: LanguageModel,
    contexts: Sequence[Ids],
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """log p(suffix | context z) of whole strings z, nats. Shape (B,). Gradients flow if enabled.

    It is what :func:`score_prefixes` gives at the string's end, without log p(z | context).

    Args:
        lm: the model as it is switched now.
        contexts, suffixes: token ids per condition; each context runs once.
        trajectories: ``condition_B`` indexes the conditions.
        rule: of the strings; a suffix that begins with the terminator begins under it.
    """
    return _whole_strings(lm, contexts, suffixes, trajectories, rule)[1]


@torch.no_grad()
def score_strings(
    lm: LanguageModel,
    contexts: Sequence[Ids],
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """log p(z suffix | context) of whole strings. Shape (B,), nats.

    What :func:`score_prefixes` gives at each string's end, without scoring its prefixes; −inf where
    the string cannot end there.
    """
    string_B, suffix_B = _whole_strings(lm, contexts, suffixes, trajectories, rule)
    ends_B1 = trajectories.length_B[:, None]
    can_end_B = rule.terminable_BS(trajectories).gather(1, ends_B1)[:, 0]
    return (string_B + suffix_B).masked_fill(~can_end_B, float("-inf"))


def _whole_strings(
    lm: LanguageModel,
    contexts: Sequence[Ids],
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> tuple[Tensor, Tensor]:
    """log p(z | context) of the actions and log p(suffix | context z), in pieces. Shapes (B,)."""
    around = max(map(len, suffixes)) + max(map(len, contexts))
    strings, ends, places = [], [], []
    for index_N, rows in by_length(
        trajectories,
        lambda length: around + length,
        lm.max_tokens_per_forward,
        sum(map(len, contexts)),
    ):
        rows, (asked, ends_in) = used_conditions(rows, contexts, suffixes)
        string_N, end_N = whole_rows(lm, lm.prefill(asked), ends_in, rows, rule)
        strings.append(string_N)
        ends.append(end_N)
        places.append(index_N)
    return in_order(strings, places), in_order(ends, places)


def whole_rows(
    lm: LanguageModel,
    prompts: PromptCache,
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> tuple[Tensor, Tensor]:
    """log p(z | context) of the actions and log p(suffix | context z), in one forward. Shapes (B,).

    Args:
        lm: as it is switched now.
        prompts: the contexts, which have been read; they stay as they are.
        suffixes: one a context.
        trajectories: ``condition_B`` indexes the contexts.
        rule: of the strings.
    """
    suffix_BM, mask_BM = padded_suffixes(suffixes, trajectories, lm.device)
    n_suffix, states = suffix_BM.shape[1], trajectories.token_BT.shape[1] + 1
    # The suffix stands right behind each row's own end; its last token is only predicted, never read.
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
    # The terminator stands under the rule for strings, as in _first_suffix_token.
    log_stop_B = rule.log_probs(logits_BMV[:, 0])[:, rule.terminator]
    first_B = torch.where(suffix_BM[:, 0] == rule.terminator, log_stop_B, log_p_BM[:, 0])
    return log_p_BT.sum(dim=1), first_B + (log_p_BM * mask_BM)[:, 1:].sum(dim=1)
