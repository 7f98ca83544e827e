"""A task's rule for strings in the tokens of a model."""

from __future__ import annotations

from gfn_runner.data.task import Task
from gfn_runner.errors import UserError
from gfn_runner.lm.encoding import ids_holding, terminator_problems
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.vocabulary import StringRule, allowed_mask


def string_rule(lm: LanguageModel, task: Task, max_len: int) -> StringRule:
    """Return the task's rule for strings in the model's tokens.

    Special tokens are never allowed, nor is any token that contains one of the task's forbidden texts;
    the terminator always is.

    Raises:
        UserError: if the terminator is not one token, or the model has no token with the task's role.
    """
    terminator = lm.terminator_text(task.terminator, task.terminator_role)
    problems = list(terminator_problems(lm.tokenizer, terminator))
    if problems:
        raise UserError(problems)
    (end,) = lm.encode(terminator)
    closed = lm.special_ids | ids_holding(lm.tokenizer, tuple(task.forbidden_texts()))
    # A model may have more or fewer logits than the tokenizer has entries.
    forbidden = {token for token in closed if token < lm.vocab_size}
    forbidden.update(range(len(lm.tokenizer), lm.vocab_size))
    allowed_V = allowed_mask(lm.vocab_size, sorted(forbidden), end)
    return StringRule(end, task.min_len, max_len, allowed_V)
