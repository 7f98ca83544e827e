"""Log-probability of every prefix followed by a suffix: packed into one forward, or one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.cache import PromptCache
from gfn_runner.lm.log_probs import chosen_log_probs, string_log_probs
from gfn_runner.lm.pieces import GivenStrings, Ids, wider
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule


def packed_prefixes(lm: LanguageModel, given: GivenStrings) -> Tensor:
    """Score like :func:`gfn_runner.lm.packing.score_prefixes`, in one forward over trunk and branches.

    The string is the trunk of a tree; the suffix is a branch after every prefix. A branch attends to the
    context, the trunk up to the end of the prefix and itself, at the positions of the plain sequence.
    States at which a string cannot end have no branch.
    """
    given = given.used()
    rows, n_tokens = given.trajectories.token_BT.shape
    prompts = lm.prefill(given.contexts)
    n_branch = max(map(len, given.suffixes)) - 1
    branches = int(given.terminable_BS.sum(dim=1).max()) if n_branch else 0
    most = logits_at_once(lm.device)
    # For very long strings the mask is as large as the logits: some states at a time, all on the same trunk.
    room = max(n_tokens, math.isqrt(most // 2) - n_tokens)  # tokens of branches
    states = max(1, room // n_branch) if branches * n_branch > room else n_tokens + 1
    # Logits of trunk and branches are the largest tensor of a step: some rows at a time.
    n_read = max(1, n_tokens + min(branches, states) * n_branch)
    at_once = max(1, min(most // (lm.vocab_size * n_read), most // n_read**2))
    pieces = []
    for index_N in torch.arange(rows, device=lm.device).split(at_once):
        own = given.of(given.trajectories.rows(index_N))
        found = [
            _packed_rows(lm, prompts, own, range(first, first + states))
            for first in range(0, own.trajectories.token_BT.shape[1] + 1, states)
        ]
        pieces.append(wider(torch.stack(found).amax(dim=0), n_tokens + 1, float("-inf")))
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def logits_at_once(device: torch.device) -> int:
    """Return how many logits a forward without gradients may have: 128 MiB on a CPU, 2 GiB on a GPU."""
    return 1 << (25 if device.type == "cpu" else 29)


def _packed_rows(
    lm: LanguageModel, prompts: PromptCache, given: GivenStrings, states: range
) -> Tensor:
    """Run :func:`packed_prefixes` on rows that share a forward, with cached contexts.

    Only the given states are scored; the others are −inf.
    """
    trajectories, rule = given.trajectories, given.rule
    suffix_BM, suffix_mask_BM = given.padded_suffixes()
    prompt = prompts.select(trajectories.condition_B)
    first_B1V = prompt.last_logits_NV[:, None]
    n_tokens = trajectories.token_BT.shape[1]
    terminable_BS = given.terminable_BS
    terminable_BS[:, : states.start] = False
    terminable_BS[:, states.stop :] = False
    # The last suffix token is only predicted, never read, so the branch does not contain it.
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
    total_BS = pad(log_p_BT.cumsum(dim=1), (1, 0))
    total_BS += _first_suffix_token(trunk_BSV, log_p_stop_BS, suffix_BM[:, 0], rule)
    if tree.token_BQ.shape[1] > n_tokens:
        (rows, branches), n_branch = tree.state_BN.shape, suffix_BM.shape[1] - 1
        later_BNM = suffix_BM[:, None, 1:].expand(-1, branches, -1)
        branch_BNMV = logits_BQV[:, n_tokens:].view(rows, branches, n_branch, -1)
        log_p_BNM = chosen_log_probs(branch_BNMV, later_BNM)
        log_p_BN = (log_p_BNM * suffix_mask_BM[:, None, 1:]).sum(dim=-1)
        total_BS.scatter_add_(1, tree.state_BN, log_p_BN)
    return total_BS.masked_fill(~terminable_BS, float("-inf"))


def _first_suffix_token(
    trunk_BSV: Tensor, log_p_stop_BS: Tensor, first_B: Tensor, rule: StringRule
) -> Tensor:
    """Return the log-probability of the suffix's first token at every state.

    A terminator is normalized under the rule for strings, as in the policy: this is what makes φ
    constant for a new adapter.
    """
    plain_BS = chosen_log_probs(trunk_BSV, first_B[:, None].expand(trunk_BSV.shape[:2]))
    return torch.where((first_B == rule.terminator)[:, None], log_p_stop_BS, plain_BS)


@dataclass(frozen=True)
class _Tree:
    """Tokens after the contexts: each row's trunk, then N branches with the suffix.

    Attributes:
        state_BN: state at which each branch starts; a row with fewer than N terminable states also has
            branches at others, whose sums are discarded.
        token_BQ: token ids, trunk first.
        mask_BQQ: which of these tokens each token attends to.
        offset_BQ: positions, counted from the end of the context.
        is_read_BQ: ``False`` at padding, which must not get positions that a model does not have.
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
        trunk_sees_TQ = pad(trunk_T[:, None] >= trunk_T, (0, len(branch_Q)))
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


def plain_prefixes(lm: LanguageModel, given: GivenStrings) -> Tensor:
    """Score like :func:`packed_prefixes`, with one forward per prefix length and no cache.

    This is the reference that the other methods are compared with.
    """
    rows, terminable_BS = given.trajectories, given.terminable_BS
    result_BS = torch.full(terminable_BS.shape, float("-inf"), device=lm.device)
    places = rows.condition_B.tolist()
    for state, alive_B in enumerate(terminable_BS.T):
        strings = [
            (given.contexts[places[row]], rows.token_BT[row, :state].tolist(), row)
            for row in alive_B.nonzero()[:, 0].tolist()
        ]
        if not strings:
            continue
        first = min(len(context) for context, _, _ in strings) - 1
        whole = [[*context, *z, *given.suffixes[places[row]]] for context, z, row in strings]
        logits_NTV = lm.whole_logits(whole, first)
        for logits_TV, (context, z, row) in zip(logits_NTV, strings, strict=True):
            is_action, suffix = rows.is_action_BT[row, :state].tolist(), given.suffixes[places[row]]
            own_TV = logits_TV[len(context) - 1 - first :]
            result_BS[row, state] = _plain_sum(own_TV, z, suffix, is_action, given.rule)
    return result_BS


def _plain_sum(
    logits_TV: Tensor, prefix: Ids, suffix: Ids, is_action: Sequence[bool], rule: StringRule
) -> Tensor:
    """Return the log-probability of a prefix and its suffix, given the logits from its first token on."""
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
