"""Log-probabilities of given strings: the policy's with gradients, and a term's for every prefix.

``packed_prefixes`` scores all prefixes of a row in one forward: the suffix hangs after every prefix
as a branch of a tree. ``plain_prefixes`` runs one forward a prefix and no cache; it is the reference
that the packed way is tested against, and the fallback for models that take no 4-D mask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gfn_runner.lm.log_probs import chosen_log_probs, string_log_probs
from gfn_runner.lm.merging import folded
from gfn_runner.lm.policy import LanguageModel, PromptCache
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.trajectories import PolicyScores, Trajectories

logger = logging.getLogger(__name__)

Ids = Sequence[int]


def trunk_logits(lm: LanguageModel, prompt: PromptCache, token_BT: Tensor) -> Tensor:
    """Logits after the prompt and after each token. Shape (B, S, V). The cache grows."""
    first_B1V = prompt.last_logits_NV[:, None]
    if token_BT.shape[1] == 0:
        return first_B1V
    steps_T = torch.arange(token_BT.shape[1], device=token_BT.device)
    # Padding is at the right of a causal trunk: nothing that counts can see it.
    mask = torch.cat([prompt.mask_NP, torch.ones_like(token_BT, dtype=torch.bool)], dim=1)
    position_BT = prompt.length_N[:, None] + steps_T
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
                rows.token_BT if lm.lockstep is None else _wider(rows.token_BT, max(1, width), 0)
            )
            logits_NSV = trunk_logits(lm, prompt.select(rows.condition_B), token_NT)
            states = rows.token_BT.shape[1] + 1
            log_pf_NT, log_pf_stop_NS = string_log_probs(logits_NSV[:, :states], rows, rule)
            log_pf_stop_NS = log_pf_stop_NS.masked_fill(rule.forced_BS(rows), 0.0)
            return _wider(log_pf_NT, width, 0.0), _wider(log_pf_stop_NS, width + 1, 0.0)

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
        log_pf_BT=_in_order(actions, places),
        log_pf_stop_BS=_in_order(stops, places),
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
def score_prefixes(
    lm: LanguageModel,
    contexts: Sequence[Ids],
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """log p(z_1..z_i suffix | context) for every prefix. Shape (B, S), nats.

    A tool's tokens are conditioned on and not scored. The tokens of z are normalised over what the
    rule allows, a suffix that starts with the terminator likewise; later suffix tokens over the
    whole vocabulary. States at which a string cannot end get −inf.
    """
    packs = packing_works(lm)
    score = packed_prefixes if packs else plain_prefixes
    longest = max(map(len, suffixes))
    around = max(len(c) + len(s) for c, s in zip(contexts, suffixes, strict=True))

    def tokens(length: int) -> int:
        branches = max(0, length - rule.min_len) + 1
        return length + branches * longest if packs else around + length

    states = trajectories.token_BT.shape[1] + 1
    pieces, places = [], []
    again = sum(map(len, contexts))
    for index_N, rows in by_length(trajectories, tokens, lm.max_tokens_per_forward, again):
        piece_NS = score(lm, contexts, suffixes, rows, rule)
        pieces.append(_wider(piece_NS, states, float("-inf")))
        places.append(index_N)
    return _in_order(pieces, places)


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
        string_N, end_N = _whole_piece(lm, contexts, suffixes, rows, rule)
        strings.append(string_N)
        ends.append(end_N)
        places.append(index_N)
    return _in_order(strings, places), _in_order(ends, places)


def _whole_piece(
    lm: LanguageModel,
    contexts: Sequence[Ids],
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> tuple[Tensor, Tensor]:
    trajectories, (contexts, suffixes) = _used_conditions(trajectories, contexts, suffixes)
    suffix_BM, mask_BM = _padded_suffixes(suffixes, trajectories, lm.device)
    n_suffix, states = suffix_BM.shape[1], trajectories.token_BT.shape[1] + 1
    # The suffix stands right behind each row's own end; its last token is only predicted, never read.
    place_BM = trajectories.length_B[:, None] + torch.arange(n_suffix, device=lm.device)
    joined_BT = torch.nn.functional.pad(trajectories.token_BT, (0, n_suffix))
    joined_BT = joined_BT.scatter(1, place_BM, suffix_BM)[:, :-1]
    prompt = lm.prefill(contexts).select(trajectories.condition_B)
    logits_BSV = trunk_logits(lm, prompt, joined_BT)
    log_p_BT, _ = string_log_probs(logits_BSV[:, :states], trajectories, rule)
    index_BMV = place_BM[..., None].expand(-1, -1, logits_BSV.shape[-1])
    logits_BMV = logits_BSV.gather(1, index_BMV)
    log_p_BM = chosen_log_probs(logits_BMV, suffix_BM)
    # The terminator stands under the rule for strings, as in _first_suffix_token.
    log_stop_B = rule.log_probs(logits_BMV[:, 0])[:, rule.terminator]
    first_B = torch.where(suffix_BM[:, 0] == rule.terminator, log_stop_B, log_p_BM[:, 0])
    return log_p_BT.sum(dim=1), first_B + (log_p_BM * mask_BM)[:, 1:].sum(dim=1)


# Splitting costs one more round through the layers: it must save tokens, and a share of them.
_LEAST_SAVED, _LEAST_SHARE = 256, 0.08


def by_length(
    trajectories: Trajectories,
    tokens: Callable[[int], int] = lambda length: length,
    budget: int | None = None,
    again: int = 0,
) -> Iterator[tuple[Tensor, Trajectories]]:
    """Rows of about the same length together, so that little is computed at padding.

    Args:
        trajectories: all rows.
        tokens: that a forward reads for a row of a given length.
        budget: tokens of a piece, unless a single row has more; ``None`` for no limit.
        again: tokens that every further piece reads once more, such as contexts: a cut must save more.

    Yields:
        Places of the rows among all, and the rows.
    """
    lengths = trajectories.length_B.tolist()
    for places in length_buckets(lengths, max(again, _LEAST_SAVED)):
        size = len(places)
        if budget is not None:
            size = max(1, budget // max(1, tokens(max(lengths[place] for place in places))))
        for start in range(0, len(places), size):
            part = places[start : start + size]
            index_N = torch.tensor(part, dtype=torch.long, device=trajectories.length_B.device)
            yield index_N, trajectories.rows(index_N)


def length_buckets(lengths: Sequence[int], least_saved: float) -> list[list[int]]:
    """Places of rows in groups that are worth a forward of their own; short ones first.

    A group is cut where that saves the most padding, as long as that is ``least_saved`` tokens or more.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)

    def cut(group: list[int]) -> list[list[int]]:
        longest = lengths[group[-1]]
        # Saved by a first part of n rows: what pads them up to the longest of all.
        saved = [n * (longest - lengths[place]) for n, place in enumerate(group, start=1)]
        most = max(saved)
        if most < max(least_saved, _LEAST_SHARE * len(group) * longest):
            return [sorted(group)]
        n = saved.index(most) + 1
        return cut(group[:n]) + cut(group[n:])

    return cut(order) if order else [[]]


def _wider(values: Tensor, width: int, filling: float) -> Tensor:
    return torch.nn.functional.pad(values, (0, width - values.shape[1]), value=filling)


def _in_order(pieces: Sequence[Tensor], places: Sequence[Tensor]) -> Tensor:
    """Rows of pieces at their places among all."""
    if len(pieces) == 1:
        return pieces[0]
    return torch.cat(list(pieces))[torch.cat(list(places)).argsort()]


def row_slices(n_rows: int, tokens_per_row: int, budget: int) -> Iterator[slice]:
    """Cut rows into pieces of at most ``budget`` tokens, at least one row each."""
    size = max(1, budget // max(1, tokens_per_row))
    for start in range(0, n_rows, size):
        yield slice(start, start + size)


def _used_conditions(
    trajectories: Trajectories, *per_condition: Sequence[Ids]
) -> tuple[Trajectories, list[list[Ids]]]:
    """Keep only the conditions that some row uses, and number the rows anew."""
    used, condition_B = trajectories.condition_B.unique(return_inverse=True)
    kept = [[values[index] for index in used.tolist()] for values in per_condition]
    rows = Trajectories(
        trajectories.token_BT, trajectories.length_B, trajectories.is_action_BT, condition_B
    )
    return rows, kept


def packed_prefixes(
    lm: LanguageModel,
    contexts: Sequence[Ids],
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """As :func:`score_prefixes`, in one forward over trunk and branches.

    The branch of state ``i`` holds the suffix after ``z_1..z_i``. Its tokens see the context, the trunk
    up to ``i`` and the branch so far, at the positions they would have in the plain string. States at
    which a string cannot end have no branch.
    """
    trajectories, (contexts, suffixes) = _used_conditions(trajectories, contexts, suffixes)
    prompts = lm.prefill(contexts)
    # Logits of trunk and branches are the largest array of a step: some rows at a time.
    n_branch = max(map(len, suffixes)) - 1
    branches = rule.terminable_BS(trajectories).sum(dim=1).max() if n_branch else 0
    n_read = trajectories.token_BT.shape[1] + int(branches) * n_branch
    pieces = [
        _wider(
            _packed_rows(lm, prompts, suffixes, trajectories.rows(index_N), rule),
            trajectories.token_BT.shape[1] + 1,
            float("-inf"),
        )
        for index_N in torch.arange(len(trajectories), device=lm.device).split(
            max(1, _logits_at_once(lm.device) // (lm.vocab_size * max(1, n_read)))
        )
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _logits_at_once(device: torch.device) -> int:
    """Numbers that a forward without gradients may have as logits: 128 MiB on a CPU, 2 GiB on a GPU."""
    return 1 << (25 if device.type == "cpu" else 29)


def _packed_rows(
    lm: LanguageModel,
    prompts: PromptCache,
    suffixes: Sequence[Ids],
    trajectories: Trajectories,
    rule: StringRule,
) -> Tensor:
    """:func:`packed_prefixes` of rows that share a forward, behind contexts that have been read."""
    suffix_BM, suffix_mask_BM = _padded_suffixes(suffixes, trajectories, lm.device)
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


def _padded_suffixes(
    suffixes: Sequence[Ids], trajectories: Trajectories, device: torch.device
) -> tuple[Tensor, Tensor]:
    longest = max(map(len, suffixes))
    suffix_CM = torch.zeros(len(suffixes), longest, dtype=torch.long)
    mask_CM = torch.zeros(len(suffixes), longest, dtype=torch.bool)
    for row, ids in enumerate(suffixes):
        suffix_CM[row, : len(ids)] = torch.tensor(list(ids))
        mask_CM[row, : len(ids)] = True
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
    """Tokens behind the contexts: each row's trunk, then N branches of a suffix.

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
    """As :func:`score_prefixes`, with one forward for each prefix length and no cache."""
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
        logits_NTV = lm.whole_logits([[*c, *z, *s] for c, z, s in strings])
        for number, row in enumerate(alive):
            is_action = trajectories.is_action_BT[row, :state].tolist()
            result_BS[row, state] = _plain_sum(logits_NTV[number], strings[number], is_action, rule)
    return result_BS


def _plain_sum(
    logits_TV: Tensor, string: tuple[Ids, Ids, Ids], is_action: Sequence[bool], rule: StringRule
) -> Tensor:
    """Log-probability of one prefix and its suffix, token by token."""
    context, prefix, suffix = string
    total, n_actions, at = torch.zeros((), device=logits_TV.device), 0, len(context) - 1
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


def packing_works(lm: LanguageModel) -> bool:
    """Whether this model is scored by the packed way; decided once for each model.

    With ``packed_rewards="auto"`` a small made-up string is scored both ways, and the packed way is
    taken only if the two agree (within 1e-3 nats in fp32, within 0.5 in half precision).
    """
    if lm.packed_rewards != "auto":
        return lm.packed_rewards == "always"
    rule = StringRule(terminator=1, min_len=0, max_len=4)
    trajectories = Trajectories.from_rows([[2, 3, 4], [4]], [[True] * 3, [True]], [0, 1], lm.device)
    arguments = ([[2, 5, 3, 4], [6, 2]], [[1, 3, 2], [1, 4]], trajectories, rule)
    tolerance = 1e-3 if next(lm.model.parameters()).dtype == torch.float32 else 0.5
    try:
        with torch.no_grad(), lm.reference():
            packed_BS = packed_prefixes(lm, *arguments)
            plain_BS = plain_prefixes(lm, *arguments)
        finite = plain_BS.isfinite()
        gap = (packed_BS - plain_BS)[finite].abs().max().item()
        works = gap <= tolerance
        reason = f"it differs by {gap:.2g} nats"
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        works, reason = False, str(error).splitlines()[0]
    if not works:
        logger.warning(
            "packed scoring is off for this model (%s); rewards take one forward a prefix", reason
        )
    lm.packed_rewards = "always" if works else "never"
    return works
