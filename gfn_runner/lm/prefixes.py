"""Log-probability of every prefix with a suffix after it: packed into one forward, or one by one.

``packed_prefixes`` scores all prefixes of a row in one forward: the suffix hangs after every prefix
as a branch of a tree. ``plain_prefixes`` runs one forward for each length and no cache; it is the
reference that other ways are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.cache import PromptCache
from gfn_runner.lm.log_probs import chosen_log_probs, string_log_probs
from gfn_runner.lm.pieces import Ids, padded, used_conditions, wider
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule


def packed_prefixes(
    lm: LanguageModel,
    contexts: Sequence[Ids],
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """As :func:`gfn_runner.lm.packing.score_prefixes`, in one forward over trunk and branches.

    The branch of state ``i`` holds the suffix after ``z_1..z_i``. Its tokens see the context, the trunk
    up to ``i`` and the branch so far, at the positions they would have in the plain string. States at
    which a string cannot end have no branch.
    """
    trajectories, (contexts, suffixes) = used_conditions(trajectories, contexts, suffixes)
    prompts = lm.prefill(contexts)
    # Logits of trunk and branches are the largest array of a step: some rows at a time.
    n_branch = max(map(len, suffixes)) - 1
    branches = rule.terminable_BS(trajectories).sum(dim=1).max() if n_branch else 0
    n_read = trajectories.token_BT.shape[1] + int(branches) * n_branch
    pieces = [
        wider(
            _packed_rows(lm, prompts, suffixes, trajectories.rows(index_N), rule),
            trajectories.token_BT.shape[1] + 1,
            float("-inf"),
        )
        for index_N in torch.arange(len(trajectories), device=lm.device).split(
            max(1, logits_at_once(lm.device) // (lm.vocab_size * max(1, n_read)))
        )
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def logits_at_once(device: torch.device) -> int:
    """Numbers that a forward without gradients may have as logits: 128 MiB on a CPU, 2 GiB on a GPU."""
    return 1 << (25 if device.type == "cpu" else 29)


def _packed_rows(
    lm: LanguageModel,
    prompts: PromptCache,
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """:func:`packed_prefixes` of rows that share a forward, after contexts that have been read."""
    suffix_BM, suffix_mask_BM = padded_suffixes(suffixes, trajectories, lm.device)
    prompt = prompts.select(trajectories.condition_B)
    first_B1V = prompt.last_logits_NV[:, None]
    n_tokens = trajectories.token_BT.shape[1]
    terminable_BS = rule.terminable_BS(trajectories)
    # The last suffix token is only predicted, never read: it needs no place in the branch.
    tree = _Tree.of(trajectories, terminable_BS, suffix_BM[:, :-1], suffix_mask_BM[:, 1:])
    if tree.token_BQ.shape[1]:
        position_BQ = (prompt.length_N[:, None] + tree.offset_BQ).masked_fill(~tree.is_read_BQ, 0)
        mask_BQP = prompt.mask_NP[:, None].expand(-1, tree.token_BQ.shape[1], -1)
        mask_BQK = torch.cat([mask_BQP, tree.mask_BQQ], dim=2)
        logits_BQV = lm.extend(prompt, tree.token_BQ, mask_BQK[:, None], position_BQ)
        trunk_BSV = torch.cat([first_B1V, logits_BQV[:, :n_tokens]], dim=1)
    else:
        trunk_BSV = first_B1V
    log_p_BT, log_p_stop_BS = string_log_probs(trunk_BSV, trajectories, rule)
    total_BS = _prefix_sums(log_p_BT)
    total_BS += _first_suffix_token(trunk_BSV, log_p_stop_BS, suffix_BM[:, 0], rule)
    if tree.token_BQ.shape[1] > n_tokens:
        (rows, branches), n_branch = tree.state_BN.shape, suffix_BM.shape[1] - 1
        later_BNM = suffix_BM[:, None, 1:].expand(-1, branches, -1)
        branch_BNMV = logits_BQV[:, n_tokens:].view(rows, branches, n_branch, -1)
        log_p_BNM = chosen_log_probs(branch_BNMV, later_BNM)
        log_p_BN = (log_p_BNM * suffix_mask_BM[:, None, 1:]).sum(dim=-1)
        total_BS.scatter_add_(1, tree.state_BN, log_p_BN)
    return total_BS.masked_fill(~terminable_BS, float("-inf"))


def padded_suffixes(
    suffixes: Sequence[Ids], trajectories: Trajectories, device: torch.device
) -> tuple[Tensor, Tensor]:
    suffix_CM, mask_CM = padded(suffixes)
    condition_B = trajectories.condition_B.cpu()
    return suffix_CM[condition_B].to(device), mask_CM[condition_B].to(device)


def _prefix_sums(log_p_BT: Tensor) -> Tensor:
    """Sums over the first i tokens, i = 0..T. Shape (B, S)."""
    zero_B1 = log_p_BT.new_zeros(log_p_BT.shape[0], 1)
    return torch.cat([zero_B1, log_p_BT.cumsum(dim=1)], dim=1)


def _first_suffix_token(
    trunk_BSV: Tensor, log_p_stop_BS: Tensor, first_B: Tensor, rule: StringRule
) -> Tensor:
    """Log-probability of the suffix's first token at every state.

    If it is the terminator it stands under the rule for strings, as in the policy: this is what
    makes φ constant for a fresh adapter.
    """
    plain_BS = chosen_log_probs(trunk_BSV, first_B[:, None].expand(trunk_BSV.shape[:2]))
    return torch.where((first_B == rule.terminator)[:, None], log_p_stop_BS, plain_BS)


@dataclass(frozen=True)
class _Tree:
    """Tokens after the contexts: each row's trunk, then N branches of a suffix.

    Attributes:
        state_BN: the state that each branch hangs at; a row with fewer than N terminable ones has
            branches at others too, whose sums nobody asks for.
        token_BQ: the tokens, trunk first.
        mask_BQQ: which of them a token sees.
        offset_BQ: positions, counted from the context's end.
        is_read_BQ: ``False`` at padding, which may not ask for positions that a model does not have.
    """

    state_BN: Tensor
    token_BQ: Tensor
    mask_BQQ: Tensor
    offset_BQ: Tensor
    is_read_BQ: Tensor

    @classmethod
    def of(
        cls,
        trajectories: Trajectories,
        terminable_BS: Tensor,
        branch_BM: Tensor,
        branch_mask_BM: Tensor,
    ) -> _Tree:
        rows, n_tokens = trajectories.token_BT.shape
        device, n_branch = branch_BM.device, branch_BM.shape[1]
        branches = int(terminable_BS.sum(dim=1).max()) if n_branch else 0
        # Terminable states first, in their order.
        state_BN = (~terminable_BS).long().argsort(dim=1, stable=True)[:, :branches]
        at_BQ = state_BN.repeat_interleave(n_branch, dim=1)
        trunk_T = torch.arange(n_tokens, device=device)
        branch_Q = torch.arange(branches, device=device).repeat_interleave(n_branch)
        depth_Q = torch.arange(n_branch, device=device).repeat(branches)
        # A trunk token sees the trunk so far, a branch token the trunk up to its state and its branch.
        trunk_sees_TQ = torch.nn.functional.pad(trunk_T[:, None] >= trunk_T, (0, len(branch_Q)))
        same_QQ = (branch_Q[:, None] == branch_Q) & (depth_Q[:, None] >= depth_Q)
        branch_sees_BQQ = torch.cat(
            [trunk_T < at_BQ[:, :, None], same_QQ.expand(rows, -1, -1)], dim=2
        )
        is_read_BNM = terminable_BS.gather(1, state_BN)[:, :, None] & branch_mask_BM[:, None]
        return cls(
            state_BN,
            torch.cat([trajectories.token_BT, branch_BM.repeat(1, branches)], dim=1),
            torch.cat([trunk_sees_TQ.expand(rows, -1, -1), branch_sees_BQQ], dim=1),
            torch.cat([trunk_T.expand(rows, -1), at_BQ + depth_Q], dim=1),
            torch.cat([trajectories.token_mask_BT, is_read_BNM.flatten(1)], dim=1),
        )


def plain_prefixes(
    lm: LanguageModel,
    contexts: Sequence[Ids],
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """As :func:`packed_prefixes`, with one forward for each prefix length and no cache."""
    rows, n_tokens = trajectories.token_BT.shape
    result_BS = torch.full((rows, n_tokens + 1), float("-inf"), device=lm.device)
    terminable_BS = rule.terminable_BS(trajectories)
    for state in range(n_tokens + 1):
        alive = terminable_BS[:, state].nonzero()[:, 0].tolist()
        if not alive:
            continue
        strings = []
        for row in alive:
            condition = int(trajectories.condition_B[row])
            prefix = trajectories.token_BT[row, :state].tolist()
            strings.append((contexts[condition], prefix, suffixes[condition]))
        first = min(len(context) for context, _, _ in strings) - 1
        logits_NTV = lm.whole_logits([[*c, *z, *s] for c, z, s in strings], first)
        for number, row in enumerate(alive):
            is_action = trajectories.is_action_BT[row, :state].tolist()
            context, prefix, suffix = strings[number]
            logits_TV = logits_NTV[number, len(context) - 1 - first :]
            result_BS[row, state] = _plain_sum(logits_TV, prefix, suffix, is_action, rule)
    return result_BS


def _plain_sum(
    logits_TV: Tensor, prefix: Ids, suffix: Ids, is_action: Sequence[bool], rule: StringRule
) -> Tensor:
    """Log-probability of one prefix and its suffix, token by token; logits from the first of them on."""
    total, n_actions, at = torch.zeros((), device=logits_TV.device), 0, 0
    for token, chosen in zip(prefix, is_action, strict=True):
        if chosen:
            may_stop = torch.tensor([n_actions >= rule.min_len], device=logits_TV.device)
            total = total + rule.log_probs(logits_TV[at][None], may_stop)[0, token]
            n_actions += 1
        at += 1
    for place, token in enumerate(suffix):
        if place == 0 and token == rule.terminator:
            total = total + rule.log_probs(logits_TV[at][None])[0, token]
        else:
            total = total + logits_TV[at].float().log_softmax(dim=-1)[token]
        at += 1
    return total
