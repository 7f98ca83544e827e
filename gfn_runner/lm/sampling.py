"""Sampling of strings with a cache, without gradients, for many conditions at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gfn_runner.data.tools import Tool
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.errors import UserError
from gfn_runner.lm.cache import PromptCache, reserve_capacity
from gfn_runner.lm.encoding import token_texts
from gfn_runner.lm.merging import merged
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule

# Row indices, their tokens, which of them are actions, and which belong to strings that are still open.
_Step = tuple[Tensor, Tensor, Tensor, Tensor]


def _trajectories(steps: Sequence[_Step], condition_B: Tensor) -> Trajectories:
    rows, device = len(condition_B), condition_B.device
    token_BT = torch.zeros(rows, len(steps), dtype=torch.long, device=device)
    is_action_BT = torch.zeros_like(token_BT, dtype=torch.bool)
    length_B = torch.zeros_like(condition_B)
    for place, (row_A, token_A, is_action_A, is_open_A) in enumerate(steps):
        token_BT[row_A, place] = token_A * is_open_A
        is_action_BT[row_A, place] = is_action_A & is_open_A
        length_B[row_A] += is_open_A
    return Trajectories(token_BT, length_B, is_action_BT, condition_B)


@torch.no_grad()
def sample(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    n_samples: int,
    rule: StringRule,
    generator: torch.Generator,
    *,
    temperature: float | Tensor = 1.0,
    tool: Tool | None = None,
) -> Trajectories:
    """Draw ``n_samples`` strings for each prompt.

    Args:
        lm: the model, with the currently active adapter (policy, or base model inside ``lm.base()``).
        prompts: token ids per condition; each runs once.
        n_samples: rows per condition; rows of one condition are adjacent.
        generator: random generator on the model's device.
        temperature: sampling temperature, applied after the rule's mask: a number, or one per row (B,).
            0 is greedy.
        tool: tool that answers what the policy writes; its tokens are observations.

    Returns:
        Trajectories; a string's terminator is not among its tokens.

    Raises:
        UserError: if logits are NaN or +inf.
    """
    device = lm.device
    temperature_B = torch.as_tensor(temperature, dtype=torch.float32, device=device)
    temperature_B = temperature_B.expand(len(prompts) * n_samples)
    with merged(lm.model):
        return _draw_strings(lm, prompts, n_samples, rule, generator, temperature_B, tool)


def _draw_strings(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    n_samples: int,
    rule: StringRule,
    generator: torch.Generator,
    temperature_B: Tensor,
    tool: Tool | None,
) -> Trajectories:
    condition_B = torch.arange(len(prompts), device=lm.device).repeat_interleave(n_samples)
    prompt = lm.prefill(prompts).select(condition_B)
    reserve_capacity(prompt.cache)
    batch = _Batch.of(prompt, temperature_B)
    # Kept on the device until all strings have ended.
    steps: list[_Step] = []
    answers = None if tool is None else _ToolAnswers(lm, tool, len(condition_B))
    while True:
        token_A, broken_A = _draw(batch, rule, generator)
        observed_A = torch.zeros_like(broken_A)
        if answers is not None:
            observed_A = answers.put_in(batch.row_A, token_A)
        batch.done_A = batch.done_A | ((token_A == rule.terminator) & ~observed_A)
        # Without a tool, the only point per token at which the host waits for the device.
        n_done, n_broken = torch.stack([batch.done_A.sum(), broken_A.sum()]).tolist()
        if n_broken:
            text = lm.decode(prompts[int(condition_B[batch.row_A[broken_A]][0])])
            raise UserError.one(
                "lm",
                f"the logits are not finite at {text!r}: an optimizer step has broken the policy, or the "
                "model overflows in its dtype",
                "finite weights and activations",
                "lower optimizer.lr, set trainer.gradient_clip_val, use lm.dtype=float32 or bfloat16",
            )
        if n_done == len(batch.done_A):
            break
        open_A = ~batch.done_A
        batch.n_actions_A = batch.n_actions_A + (~observed_A & open_A)
        steps.append((batch.row_A, token_A, ~observed_A, open_A))
        if answers is not None:
            answers.ask(batch.row_A, token_A, observed_A, open_A)
        if 4 * n_done >= len(open_A):
            # Dropping the finished rows costs as much as one token of all rows.
            index = open_A.nonzero()[:, 0]
            batch, token_A = batch.select(index), token_A[index]
        batch.read(lm, token_A)
    return _trajectories(steps, condition_B)


@dataclass
class _Batch:
    """A rows that are still being sampled; a row is dropped some time after its end.

    Attributes:
        row_A: index of each row among all rows.
        logits_AV: next-token logits.
        mask_AK, position_A: visible keys, and position of the next token.
        temperature_A, n_actions_A, done_A: temperature, actions so far, and whether the string has ended.
    """

    prompt: PromptCache
    row_A: Tensor
    logits_AV: Tensor
    mask_AK: Tensor
    position_A: Tensor
    temperature_A: Tensor
    n_actions_A: Tensor
    done_A: Tensor

    @classmethod
    def of(cls, prompt: PromptCache, temperature_B: Tensor) -> _Batch:
        row_B = torch.arange(len(temperature_B), device=temperature_B.device)
        logits, mask, length = prompt.last_logits_NV, prompt.mask_NP, prompt.length_N
        none_B = torch.zeros_like(row_B)
        return cls(prompt, row_B, logits, mask, length, temperature_B, none_B, none_B > 0)

    def select(self, index: Tensor) -> _Batch:
        """Return the rows ``index`` only."""
        names = [field.name for field in fields(self) if field.name != "prompt"]
        columns = {name: getattr(self, name)[index] for name in names}
        return _Batch(self.prompt.select(index), **columns)

    def read(self, lm: LanguageModel, token_A: Tensor) -> None:
        """Run the model on one more token per row."""
        self.mask_AK = torch.cat([self.mask_AK, torch.ones_like(self.mask_AK[:, :1])], dim=1)
        logits_A1V = lm.extend(
            self.prompt, token_A[:, None], self.mask_AK, self.position_A[:, None]
        )
        self.logits_AV = logits_A1V[:, -1]
        self.position_A = self.position_A + 1


def _draw(batch: _Batch, rule: StringRule, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one token per row, the terminator where the string must end; also return which rows are broken.

    A row is broken if any of its logits is NaN or +inf, so that its probabilities have no sum.
    """
    masked_AV = rule.masked(batch.logits_AV, rule.may_stop(batch.n_actions_A))
    greedy_A = batch.temperature_A == 0
    scale_A = batch.temperature_A.masked_fill(greedy_A, 1.0)
    probability_AV = (masked_AV / scale_A[:, None]).softmax(dim=-1)
    token_A, total_A = _inverse_cdf(probability_AV, generator)
    token_A = torch.where(greedy_A, masked_AV.argmax(dim=-1), token_A)
    return token_A.masked_fill(batch.n_actions_A >= rule.max_len, rule.terminator), total_A.isnan()


def _inverse_cdf(probability_AV: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw one index per row in proportion to its probabilities; also return their sum. Shapes (A,).

    This takes one random number per row; ``torch.multinomial`` draws one per token. In double precision:
    fp32 sums would lose tokens of probability below about 1e-7, of which a large vocabulary has many.
    """
    cdf_AV = probability_AV.cumsum(dim=-1, dtype=torch.float64)
    total_A1 = cdf_AV[:, -1:]
    drawn_A1 = torch.rand(
        total_A1.shape, generator=generator, dtype=torch.float64, device=total_A1.device
    )
    # Below the total even if the product is rounded up; so the token found, the first whose cumulative
    # sum lies above it, has a probability above 0.
    below_A1 = torch.nextafter(total_A1, torch.zeros_like(total_A1))
    below_A1 = torch.minimum(drawn_A1 * total_A1, below_A1)
    return torch.searchsorted(cdf_AV, below_A1, right=True)[:, 0], total_A1[:, 0]


class _ToolAnswers:
    """A tool during sampling: its answers whose tokens are still to be read, per row."""

    def __init__(self, lm: LanguageModel, tool: Tool, rows: int):
        self.lm, self.tool = lm, tool
        self._triggers = _trigger_ids(lm.tokenizer, tool.trigger)
        self._ids: list[list[int]] = [[] for _ in range(rows)]
        self._waiting: list[list[int]] = [[] for _ in range(rows)]

    def put_in(self, row_A: Tensor, token_A: Tensor) -> Tensor:
        """Replace drawn tokens by waiting ones, in place. Return which rows read one."""
        waiting = [self._waiting[row] for row in row_A.tolist()]
        given = [(own.pop(0), 1) if own else (0, 0) for own in waiting]
        given_A, observed_A = torch.tensor(given, device=token_A.device).unbind(dim=1)
        token_A.copy_(torch.where(observed_A.bool(), given_A, token_A))
        return observed_A.bool()

    def ask(self, row_A: Tensor, token_A: Tensor, observed_A: Tensor, is_open_A: Tensor) -> None:
        """Record the tokens, and the tool's answers to those that trigger it."""
        # One tensor, so that the host waits for the device once.
        columns = torch.stack([row_A, token_A, observed_A.long(), is_open_A.long()], dim=1)
        for row, token, observed, is_open in columns.tolist():
            if not is_open:
                continue
            self._ids[row].append(token)
            if token in self._triggers and not observed and not self._waiting[row]:
                answer = self.tool.answer(self.lm.decode(self._ids[row]))
                if answer is not None:
                    self._waiting[row].extend(self.lm.encode(answer))


@lru_cache(maxsize=4)  # it iterates over the whole vocabulary
def _trigger_ids(tokenizer: Any, trigger: str) -> frozenset[int]:
    """Return the ids of tokens whose text ends with a tool's trigger."""
    texts = enumerate(token_texts(tokenizer))
    return frozenset(token for token, text in texts if text.rstrip().endswith(trigger))


def with_tool(
    lm: LanguageModel, given: str | Sequence[int], tool: Tool | None
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Return the tokens of a given string (a text or tokens), and which of them are actions.

    With a tool, the given string does not contain the tool's answers; they are inserted where the tool
    would have answered.
    """
    ids = lm.encode(given) if isinstance(given, str) else tuple(given)
    if tool is None:
        return ids, (True,) * len(ids)
    tokens: list[int] = []
    actions: list[bool] = []
    triggers = _trigger_ids(lm.tokenizer, tool.trigger)
    for token in ids:
        tokens.append(token)
        actions.append(True)
        if token in triggers:
            answer = tool.answer(lm.decode(tokens))
            observed = lm.encode(answer) if answer is not None else ()
            tokens += observed
            actions += [False] * len(observed)
    return tuple(tokens), tuple(actions)
