"""Demonstrations of conditions as trajectories: those of the task, and those that the base model writes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch

from gfn_runner.data.conditions import Condition
from gfn_runner.data.samples import DemonstrationPrompt
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.sampling import sample, with_tool
from gfn_runner.lm.vocabulary import StringRule
from gfn_runner.tasks.base import GFlowNetModule

# Token ids of strings that a model wrote, by condition key.
Written = dict[str, tuple[tuple[int, ...], ...]]


@torch.no_grad()
def written_demonstrations(
    lm: LanguageModel,
    asked: Mapping[str, DemonstrationPrompt],
    rule: StringRule,
    generator: torch.Generator,
) -> Written:
    """Strings of different texts that the bare base model writes, by condition key; in the order of their draw.

    They are the tokens that the model wrote: those that the tokenizer would write the text with may be
    far less probable.
    """
    if not asked:
        return {}
    prompts = [lm.encode_prompt(a.prompt) for a in asked.values()]
    most = max(a.n for a in asked.values())
    with lm.base():
        rows = sample(lm, prompts, most, rule, generator)
    written = {}
    for place, (key, a) in enumerate(asked.items()):
        kept: dict[str, tuple[int, ...]] = {}
        for ids in (rows.ids(place * most + number) for number in range(a.n)):
            found = re.match(a.keep, lm.decode(ids))
            if found and found.group():
                kept.setdefault(found.group(), _beginning(lm, ids, found.group()))
        written[key] = tuple(kept.values())
    return written


def _beginning(lm: LanguageModel, ids: Sequence[int], text: str) -> tuple[int, ...]:
    """The first tokens of a string, which are ``text``; its usual ones if it ends within a token."""
    for n in range(len(ids), 0, -1):
        if lm.decode(ids[:n]) == text:
            return tuple(ids[:n])
    return lm.encode(text)


def fitting_demonstrations(
    module: GFlowNetModule, conditions: Sequence[Condition], written: Written | None = None
) -> tuple[Trajectories, int]:
    """Demonstrations that the policy could write, a tool's answers put in, and how many it could not.

    The latter are not to be scored: they may be longer than the model's context. Those in ``written`` are
    taken beside the conditions' own.
    """
    rule, tool, others = module.rule, module.tool(), written or {}
    known: list[tuple[int, str | Sequence[int]]] = []
    for place, condition in enumerate(conditions):
        known += ((place, text) for text in condition.demonstrations)
        known += ((place, ids) for ids in others.get(condition.key, ()))
    rows = [(*with_tool(module.lm, given, tool), place) for place, given in known]
    tokens, actions, places = zip(*rows, strict=True)
    trajectories = Trajectories.from_rows(tokens, actions, places, module.lm.device)
    fits_B = trajectories.at_ends(rule.terminable_BS(trajectories))
    fits_B = fits_B & (rule.n_actions_BS(trajectories)[:, -1] <= rule.max_len)
    return trajectories.rows(fits_B.nonzero()[:, 0]), int((~fits_B).sum())
