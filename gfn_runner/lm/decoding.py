"""Decoding from a language model under the rule for strings: beam search, nucleus and top-k sampling.

Beam search and truncated sampling use ``generate`` of transformers. Diverse beam search is no longer part
of transformers; here it has one beam per group, as in the paper's comparison, which takes few lines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.merging import merged
from gfn_runner.lm.pieces import padded
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule


@torch.no_grad()
def beam_search(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], n: int, rule: StringRule
) -> Trajectories:
    """Return the ``n`` best strings of beam search with ``n`` beams, by log q (length penalty 0).

    Args:
        lm: the model, with the currently active adapter.
        prompts: token ids per condition.
        n: number of beams and of strings per prompt.
    """
    options = {"num_beams": n, "num_return_sequences": n, "do_sample": False}
    # Stop only when no open beam can still beat the finished ones.
    return _generate(
        lm, prompts, n, rule, {**options, "length_penalty": 0.0, "early_stopping": "never"}
    )


@torch.no_grad()
def truncated_sample(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    n: int,
    rule: StringRule,
    generator: torch.Generator,
    *,
    top_p: float = 1.0,
    top_k: int = 0,
    temperature: float = 1.0,
) -> Trajectories:
    """Sample ``n`` strings per prompt, each token from the truncated next-token distribution.

    Args:
        generator: its next number seeds the draw.
        top_p: keep the fewest most likely tokens with this total probability (Holtzman et al. 2019).
        top_k: number of most likely tokens to keep; 0 keeps all.
        temperature: sampling temperature, applied before truncation.
    """
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": n, "num_beams": 1}
    options |= {"top_p": top_p, "top_k": top_k, "temperature": temperature}
    devices = [lm.device] if lm.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        return _generate(lm, prompts, n, rule, options)


def _generate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    n: int,
    rule: StringRule,
    options: dict[str, Any],
) -> Trajectories:
    from transformers import GenerationConfig, LogitsProcessorList

    token_NP, mask_NP = padded(prompts, left=True, filling=rule.terminator)
    longest = token_NP.shape[1]
    config = GenerationConfig(
        max_new_tokens=rule.max_len + 1,
        eos_token_id=rule.terminator,
        pad_token_id=rule.terminator,
        bos_token_id=None,
        use_cache=True,
        **options,
    )
    with merged(lm.model), _no_saved_defaults(lm.model) as model:
        output_BL = model.generate(
            input_ids=token_NP.to(lm.device),
            attention_mask=mask_NP.long().to(lm.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([_Ruled(rule, longest)]),
        )
    return _trajectories(output_BL[:, longest:], n, rule)


@contextlib.contextmanager
def _no_saved_defaults(model: Any) -> Iterator[Any]:
    """Yield the model without PEFT's wrapper, and with an empty generation config inside the context.

    ``generate`` takes every field that its config leaves unset from ``model.generation_config``, which
    comes with the weights: penalties, forbidden words and truncation would distort comparisons.
    """
    from transformers import GenerationConfig

    inner = getattr(model, "get_base_model", lambda: model)()
    saved = inner.generation_config
    inner.generation_config = GenerationConfig()
    try:
        yield inner
    finally:
        inner.generation_config = saved


class _Ruled:
    """Logits processor that returns next-token log-probabilities under the rule for strings."""

    def __init__(self, rule: StringRule, n_prompt: int):
        self.rule, self.n_prompt = rule, n_prompt

    def __call__(self, input_ids: Tensor, scores_NV: Tensor) -> Tensor:
        n_actions = input_ids.shape[1] - self.n_prompt
        n_actions_N = torch.full((len(scores_NV),), n_actions, device=scores_NV.device)
        return next_log_probs(self.rule, scores_NV, n_actions_N)


def next_log_probs(rule: StringRule, logits_NV: Tensor, n_actions_N: Tensor) -> Tensor:
    """Return next-token log q after ``n_actions_N`` actions; at ``max_len`` only the terminator is left."""
    log_q_NV = rule.log_probs(logits_NV, rule.may_stop(n_actions_N))
    ends_V = torch.full_like(log_q_NV[0], float("-inf"))
    ends_V[rule.terminator] = 0.0
    return torch.where((n_actions_N >= rule.max_len)[:, None], ends_V, log_q_NV)


def _trajectories(token_BT: Tensor, n: int, rule: StringRule) -> Trajectories:
    """Truncate each row at its terminator; there are ``n`` rows per condition."""
    end = rule.terminator
    strings = [row[: row.index(end)] if end in row else row for row in token_BT.tolist()]
    places = [row // n for row in range(len(strings))]
    actions = [[True] * len(string) for string in strings]
    return Trajectories.from_rows(strings, actions, places, token_BT.device)


@torch.no_grad()
def diverse_beam_search(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    n: int,
    rule: StringRule,
    *,
    penalty: float = 1.0,
) -> Trajectories:
    """Return ``n`` strings per prompt from diverse beam search with ``n`` groups of one beam.

    At every step the groups choose in turn; a token's log q is lowered by ``penalty`` nats for each
    earlier group of the same prompt that chose it at this step (Hamming diversity; Vijayakumar et al.
    2016, arXiv:1610.02424, eq. 4).
    """
    place_B = torch.arange(len(prompts), device=lm.device).repeat_interleave(n)
    rows = len(place_B)
    chosen_BT = place_B.new_zeros(rows, 0)
    open_B = torch.ones(rows, dtype=torch.bool, device=lm.device)
    with merged(lm.model):
        prompt = lm.prefill(prompts).select(place_B)
        logits_BV, mask_BK, position_B = prompt.last_logits_NV, prompt.mask_NP, prompt.length_N
        for n_actions in range(rule.max_len + 1):
            log_q_BV = next_log_probs(rule, logits_BV, torch.full_like(place_B, n_actions))
            token_B = _one_group_after_another(log_q_BV.view(len(prompts), n, -1), open_B, penalty)
            token_B = token_B.masked_fill(~open_B, rule.terminator)
            chosen_BT = torch.cat([chosen_BT, token_B[:, None]], dim=1)
            open_B = open_B & (token_B != rule.terminator)
            if not open_B.any():
                break
            mask_BK = torch.cat([mask_BK, torch.ones_like(mask_BK[:, :1])], dim=1)
            logits_BV = lm.extend(prompt, token_B[:, None], mask_BK, position_B[:, None])[:, -1]
            position_B = position_B + 1
    return _trajectories(chosen_BT, n, rule)


def _one_group_after_another(log_q_CNV: Tensor, open_B: Tensor, penalty: float) -> Tensor:
    """Choose the next token of every group of each condition, in row order. Shape (C·N,)."""
    conditions, n, vocabulary = log_q_CNV.shape
    open_CN = open_B.view(conditions, n)
    count_CV = log_q_CNV.new_zeros(conditions, vocabulary)
    columns = []
    for group in range(n):
        token_C = (log_q_CNV[:, group] - penalty * count_CV).argmax(dim=-1)
        # A group whose string has ended chooses no token that later groups should avoid.
        count_CV.scatter_add_(1, token_C[:, None], open_CN[:, group, None].to(count_CV.dtype))
        columns.append(token_C)
    return torch.stack(columns, dim=1).flatten()
