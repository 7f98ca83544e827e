"""Drawing strings from a cache, without gradients, for many conditions at once; knows no reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.tools import Tool
from gfn_runner.types import Trajectories

# Finding a tool's triggers decodes the whole vocabulary: once for a model and a trigger.
_TRIGGERS: WeakKeyDictionary[LanguageModel, dict[str, frozenset[int]]] = WeakKeyDictionary()


class NonFiniteLogits(ArithmeticError):
    """The model gives NaN.

    Attributes:
        prompt: index of the first prompt at which it does.
    """

    def __init__(self, prompt: int):
        super().__init__(f"the model's logits are not finite at prompt {prompt}")
        self.prompt = prompt


@dataclass
class _Strings:
    """Strings under construction. ``waiting`` holds a tool's tokens that are still to be read."""

    tokens: list[list[int]]
    actions: list[list[bool]]
    waiting: list[list[int]] = field(default_factory=list)

    @classmethod
    def empty(cls, rows: int) -> _Strings:
        return cls([[] for _ in range(rows)], [[] for _ in range(rows)], [[] for _ in range(rows)])


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
        lm: the model, switched as it is now (policy, or base model within ``lm.reference()``).
        prompts: token ids per condition; each runs once.
        n_samples: rows per condition; rows of one condition are neighbours.
        rule: vocabulary, terminator and lengths.
        generator: of the model's device.
        temperature: of the draw, applied after the rule's mask: a number, or one for each row (B,).
            0 is greedy.
        tool: answers what the policy writes; its tokens are observations.

    Returns:
        Trajectories; a string's terminator is not among its tokens.

    Raises:
        NonFiniteLogits: if the model gives NaN.
    """
    device = lm.device
    condition_B = torch.arange(len(prompts), device=device).repeat_interleave(n_samples)
    prompt = lm.prefill(prompts).select(condition_B)
    rows = len(condition_B)
    temperature_B = torch.as_tensor(temperature, dtype=torch.float32, device=device).expand(rows)
    strings = _Strings.empty(rows)
    n_actions_B = torch.zeros(rows, dtype=torch.long, device=device)
    done_B = torch.zeros(rows, dtype=torch.bool, device=device)
    logits_BV, mask_BK, position_B = prompt.last_logits_NV, prompt.mask_NP, prompt.length_N
    triggers = _trigger_ids(lm, tool)
    while True:
        broken_B = logits_BV.isnan().any(dim=-1)
        if broken_B.any():
            raise NonFiniteLogits(int(condition_B[broken_B][0]))
        token_B = _draw(logits_BV, n_actions_B, rule, temperature_B, generator)
        observed_B = _read_waiting(strings, token_B)
        done_B |= (token_B == rule.terminator) & ~observed_B
        if done_B.all():
            break
        n_actions_B += (~observed_B & ~done_B).long()
        _append(strings, token_B.tolist(), observed_B.tolist(), done_B.tolist())
        if tool is not None:
            _ask_tool(lm, tool, triggers, strings, done_B.tolist())
        mask_BK = torch.cat([mask_BK, torch.ones_like(mask_BK[:, :1])], dim=1)
        logits_BV = lm.extend(prompt, token_B[:, None], mask_BK, position_B[:, None])[:, -1]
        position_B = position_B + 1
    return Trajectories.from_rows(strings.tokens, strings.actions, condition_B.tolist(), device)


def _draw(
    logits_BV: Tensor,
    n_actions_B: Tensor,
    rule: StringRule,
    temperature_B: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """One token for every row; the terminator where the string must end."""
    masked_BV = rule.masked(logits_BV, n_actions_B >= rule.min_len)
    greedy_B = temperature_B == 0
    scale_B = temperature_B.masked_fill(greedy_B, 1.0)
    probability_BV = (masked_BV / scale_B[:, None]).softmax(dim=-1)
    token_B = torch.multinomial(probability_BV, 1, generator=generator)[:, 0]
    token_B = torch.where(greedy_B, masked_BV.argmax(dim=-1), token_B)
    return token_B.masked_fill(n_actions_B >= rule.max_len, rule.terminator)


def _read_waiting(strings: _Strings, token_B: Tensor) -> Tensor:
    """Put a waiting tool token in place of the drawn one. Returns which rows read one."""
    observed = [bool(waiting) for waiting in strings.waiting]
    for row, waits in enumerate(observed):
        if waits:
            token_B[row] = strings.waiting[row].pop(0)
    return torch.tensor(observed, device=token_B.device)


def _append(strings: _Strings, tokens: list[int], observed: list[bool], done: list[bool]) -> None:
    for row, token in enumerate(tokens):
        if not done[row]:
            strings.tokens[row].append(token)
            strings.actions[row].append(not observed[row])


def _trigger_ids(lm: LanguageModel, tool: Tool | None) -> frozenset[int]:
    """Tokens whose text ends in the tool's trigger."""
    if tool is None:
        return frozenset()
    known = _TRIGGERS.setdefault(lm, {})
    if tool.trigger not in known:
        known[tool.trigger] = frozenset(
            token
            for token in range(lm.vocab_size)
            if lm.decode([token]).rstrip().endswith(tool.trigger)
        )
    return known[tool.trigger]


def _ask_tool(
    lm: LanguageModel, tool: Tool, triggers: frozenset[int], strings: _Strings, done: list[bool]
) -> None:
    for row, ids in enumerate(strings.tokens):
        fresh = not done[row] and not strings.waiting[row] and ids
        if fresh and strings.actions[row][-1] and ids[-1] in triggers:
            answer = tool.answer(lm.decode(ids))
            if answer is not None:
                strings.waiting[row].extend(lm.encode(answer))


def with_tool(
    lm: LanguageModel, text: str, tool: Tool | None
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Tokens of a given string and which of them are actions.

    With a tool, the string is read as its author wrote it, without the tool's answers; they are put
    in where the tool would have answered.
    """
    if tool is None:
        ids = lm.encode(text)
        return ids, (True,) * len(ids)
    tokens: list[int] = []
    actions: list[bool] = []
    triggers = _trigger_ids(lm, tool)
    for token in lm.encode(text):
        tokens.append(token)
        actions.append(True)
        if token in triggers:
            answer = tool.answer(lm.decode(tokens))
            observed = lm.encode(answer) if answer is not None else ()
            tokens += observed
            actions += [False] * len(observed)
    return tuple(tokens), tuple(actions)
