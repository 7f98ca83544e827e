"""Drawing strings from a cache, without gradients, for many conditions at once; knows no reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gfn_runner.lm.merging import merged
from gfn_runner.lm.policy import LanguageModel, PromptCache
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.tools import Tool
from gfn_runner.trajectories import Trajectories

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
        lm: the model, switched as it is now (policy, or base model within ``lm.base()``).
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
    # Needs transformers, which the check of a config does without.
    from gfn_runner.lm.cache import make_roomy

    device = lm.device
    condition_B = torch.arange(len(prompts), device=device).repeat_interleave(n_samples)
    prompt = lm.prefill(prompts).select(condition_B)
    make_roomy(prompt.cache)
    strings = _Strings.empty(len(condition_B))
    batch = _Batch.of(prompt, temperature_B)
    triggers = _trigger_ids(lm, tool)
    while True:
        broken_A = batch.logits_AV.isnan().any(dim=-1)
        if broken_A.any():
            raise NonFiniteLogits(int(condition_B[batch.row_A[broken_A]][0]))
        token_A = _draw(batch, rule, generator)
        places = batch.row_A.tolist()
        observed_A = _read_waiting(strings, places, token_A)
        batch.done_A = batch.done_A | ((token_A == rule.terminator) & ~observed_A)
        if batch.done_A.all():
            break
        batch.n_actions_A = batch.n_actions_A + (~observed_A & ~batch.done_A).long()
        done = batch.done_A.tolist()
        _append(strings, places, token_A.tolist(), observed_A.tolist(), done)
        if tool is not None:
            _ask_tool(lm, tool, triggers, strings, places, done)
        if 4 * sum(done) >= len(done):
            # Leaving the finished ones out costs as much as one token of all.
            open_A = (~batch.done_A).nonzero()[:, 0]
            batch, token_A = batch.select(open_A), token_A[open_A]
        batch.read(lm, token_A)
    return Trajectories.from_rows(strings.tokens, strings.actions, condition_B.tolist(), device)


@dataclass
class _Batch:
    """Rows that are still read and drawn. A of them; a row leaves some time after its end.

    Attributes:
        prompt: their cache.
        row_A: their place among all rows.
        logits_AV: what follows each.
        mask_AK, position_A: keys that may be seen, and position of the next token.
        temperature_A, n_actions_A, done_A: of each row.
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
        return cls(
            prompt,
            row_B,
            prompt.last_logits_NV,
            prompt.mask_NP,
            prompt.length_N,
            temperature_B,
            torch.zeros_like(row_B),
            torch.zeros_like(row_B, dtype=torch.bool),
        )

    def select(self, index: Tensor) -> _Batch:
        """The rows ``index`` alone."""
        columns = (
            self.row_A,
            self.logits_AV,
            self.mask_AK,
            self.position_A,
            self.temperature_A,
            self.n_actions_A,
            self.done_A,
        )
        return _Batch(self.prompt.select(index), *(column[index] for column in columns))

    def read(self, lm: LanguageModel, token_A: Tensor) -> None:
        """Read one token each."""
        self.mask_AK = torch.cat([self.mask_AK, torch.ones_like(self.mask_AK[:, :1])], dim=1)
        logits_A1V = lm.extend(
            self.prompt, token_A[:, None], self.mask_AK, self.position_A[:, None]
        )
        self.logits_AV = logits_A1V[:, -1]
        self.position_A = self.position_A + 1


def _draw(batch: _Batch, rule: StringRule, generator: torch.Generator) -> Tensor:
    """One token for every row; the terminator where the string must end."""
    masked_AV = rule.masked(batch.logits_AV, rule.may_stop(batch.n_actions_A))
    greedy_A = batch.temperature_A == 0
    scale_A = batch.temperature_A.masked_fill(greedy_A, 1.0)
    probability_AV = (masked_AV / scale_A[:, None]).softmax(dim=-1)
    token_A = _inverse_cdf(probability_AV, generator)
    token_A = torch.where(greedy_A, masked_AV.argmax(dim=-1), token_A)
    return token_A.masked_fill(batch.n_actions_A >= rule.max_len, rule.terminator)


def _inverse_cdf(probability_AV: Tensor, generator: torch.Generator) -> Tensor:
    """One index for each row, in proportion to its probabilities. Shape (A,).

    One random number a row, where ``torch.multinomial`` draws one a token. In double precision: fp32
    sums would lose tokens of less than about 1e-7, of which a large vocabulary has many.
    """
    cdf_AV = probability_AV.double().cumsum(dim=-1)
    total_A1 = cdf_AV[:, -1:]
    drawn_A1 = torch.rand(
        total_A1.shape, generator=generator, dtype=torch.float64, device=total_A1.device
    )
    # Below the total even where the product is rounded up; so the token found, the first whose sum
    # lies above it, has a probability above 0.
    below_A1 = torch.nextafter(total_A1, torch.zeros_like(total_A1))
    return torch.searchsorted(cdf_AV, torch.minimum(drawn_A1 * total_A1, below_A1), right=True)[
        :, 0
    ]


def _read_waiting(strings: _Strings, places: list[int], token_A: Tensor) -> Tensor:
    """Put a waiting tool token in place of the drawn one. Returns which rows read one."""
    observed = [bool(strings.waiting[place]) for place in places]
    for row, place in enumerate(places):
        if observed[row]:
            token_A[row] = strings.waiting[place].pop(0)
    return torch.tensor(observed, device=token_A.device)


def _append(
    strings: _Strings,
    places: list[int],
    tokens: list[int],
    observed: list[bool],
    done: list[bool],
) -> None:
    for place, token, seen, ended in zip(places, tokens, observed, done, strict=True):
        if not ended:
            strings.tokens[place].append(token)
            strings.actions[place].append(not seen)


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
    lm: LanguageModel,
    tool: Tool,
    triggers: frozenset[int],
    strings: _Strings,
    places: list[int],
    done: list[bool],
) -> None:
    for place, ended in zip(places, done, strict=True):
        ids = strings.tokens[place]
        fresh = not ended and not strings.waiting[place] and ids
        if fresh and strings.actions[place][-1] and ids[-1] in triggers:
            answer = tool.answer(lm.decode(ids))
            if answer is not None:
                strings.waiting[place].extend(lm.encode(answer))


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
