"""Checks that need a tokenizer, made before any folder is created or weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from gfn_runner.baselines.base import few_shot_conditions
from gfn_runner.config.run_config import RunConfig
from gfn_runner.data.conditions import Chat, Condition
from gfn_runner.errors import Problem, UserError
from gfn_runner.lm.classifier import label_problems
from gfn_runner.lm.encoder import encoder_problems
from gfn_runner.lm.model_config import WORDS
from gfn_runner.lm.text_checks import text_problems
from gfn_runner.rewards.factors import constraint_of
from gfn_runner.rewards.text_constraints import TextConstraint


def check_texts(config: RunConfig) -> None:
    """Check terminator, adapted layers and lengths with the model's own config and tokenizer.

    Raises:
        UserError: lists all problems.
    """
    task, data = config.task, config.data
    strings = []
    for condition in (*data.train, *data.evaluation):
        name = str(condition.facts.get("line", f"condition {condition.key!r}"))
        strings.append((f"the prompt of {name}", condition.prompt, ""))
        strings += [
            (f"the reward's context and suffix of {name}", t.context, suffix)
            for t in condition.terms
            for suffix in (t.suffix, *t.rivals)
        ]
    for condition in data.train:
        asked = task.demonstration_prompt(condition)
        if asked is not None:
            name = f"what the base model reads to write demonstrations of {condition.key!r}"
            strings.append((name, asked.prompt, ""))
    for shots in config.evaluation.shots(task.default_shots):
        prompted = few_shot_conditions(task, data.evaluation, shots, config.seed)
        strings += [
            (f"the {shots}-shot prompt of {c.key!r}", c.prompt, text)
            for c in prompted
            for text in (task.direct_choices(c) or ("",))
        ]
    longest, shortest = sorted((task.max_len, task.eval_max_len), reverse=True)
    constraints = {
        str(condition.facts.get("where", f"condition {condition.key!r}")): constraint
        for condition in (*data.train, *data.evaluation)
        if (constraint := constraint_of(condition)) is not None
    }
    further = {"em.lora": config.em.lora} if config.em.rounds else {}
    problems = list(
        text_problems(
            config.lm,
            task.terminator,
            strings,
            longest,
            role=task.terminator_role,
            chats=list(_chats((*data.train, *data.evaluation))),
            listed=_listed(config),
            listed_max_len=shortest,
            written=[text for c in data.train for text in c.demonstrations],
            forbidden=task.forbidden_texts(),
            further_adapters=further,
        )
    )
    problems += _classifier_problems(constraints)
    encoder = config.evaluation.encoder
    problems += [] if encoder == WORDS else encoder_problems(encoder)
    if problems:
        raise UserError(problems)


def _chats(conditions: Iterable[Condition]) -> Iterator[tuple[str, Chat]]:
    """Yield the distinct chats among prompts and contexts, each with the field it was found in."""
    known: set[str] = set()
    for condition in conditions:
        line = condition.facts.get("line", f"condition {condition.key!r}")
        texts = {"messages": condition.prompt}
        texts |= {f"terms[{k}].messages": term.context for k, term in enumerate(condition.terms)}
        for field, text in texts.items():
            if isinstance(text, Chat) and text not in known:
                known.add(text)
                yield f"{line}, field {field}", text


def _listed(config: RunConfig) -> list[str]:
    """Return the strings of the support that the task enumerates for any condition."""
    conditions = (*config.data.train, *config.data.evaluation)
    return sorted({text for c in conditions for text in config.task.support(c)})


def _classifier_problems(constraints: Mapping[str, TextConstraint]) -> Iterator[Problem]:
    """Yield classifiers that are not available, and labels that a classifier does not have."""
    asked: dict[str, dict[str, str]] = {}
    for where, constraint in constraints.items():
        if constraint.classifier is not None:
            # One location is enough for each label of a classifier.
            asked.setdefault(constraint.classifier.name, {}).setdefault(
                constraint.classifier.label, where
            )
    for name, places in asked.items():
        yield from label_problems(name, [(where, label) for label, where in places.items()])
