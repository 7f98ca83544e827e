"""What only a tokenizer can tell of a whole run: asked before any folder is made or weight loaded."""

from __future__ import annotations

from gfn_runner.baselines.prompting import few_shot_conditions
from gfn_runner.config import RunConfig
from gfn_runner.errors import UserError
from gfn_runner.lm.checks import text_problems


def check_texts(config: RunConfig) -> None:
    """Check terminator, adapted layers and lengths with the model's own config and tokenizer.

    Raises:
        UserError: with all problems.
    """
    task, data = config.task, config.data
    strings = []
    for condition in (*data.train, *data.evaluation):
        name = f"condition {condition.key!r}"
        strings.append((f"the prompt of {name}", condition.prompt, ""))
        strings += [
            (f"the reward's context of {name}", t.context, suffix)
            for t in condition.terms
            for suffix in (t.suffix, *t.rivals)
        ]
    for condition in data.train:
        asked = task.demonstration_prompt(condition)
        if asked is not None:
            name = f"what the base model reads to write demonstrations of {condition.key!r}"
            strings.append((name, asked.prompt, ""))
    for shots in config.callbacks.evaluation.baseline_shots:
        prompted = few_shot_conditions(task, data.evaluation, shots, config.seed)
        strings += [
            (f"the {shots}-shot prompt of {c.key!r}", c.prompt, text)
            for c in prompted
            for text in (task.direct_choices(c) or ("",))
        ]
    longest = max(task.max_len, task.eval_max_len)
    further = {"em.lora": config.em.lora} if config.em.rounds else {}
    problems = list(text_problems(config.lm, task.terminator, strings, longest, further))
    if problems:
        raise UserError(problems)
