"""Inference with a trained policy: samples with log R and log q, and Bayesian model averaging of answers.

    policy = Policy.load("outputs/arithmetic/2026-01-31/12-00-00")
    for sample in policy.sample("Question: 3 + 4 - 9 = ? Answer:", n=5):
        print(sample.text, sample.log_reward, sample.log_q)

Nothing is trained or written to disk.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gfn_runner.algorithms.em import load_answers
from gfn_runner.config.run_config import RunConfig
from gfn_runner.config.validation import check
from gfn_runner.data.conditions import Chat, Condition
from gfn_runner.data.task import Task
from gfn_runner.data.trajectories import Trajectories
from gfn_runner.errors import UserError
from gfn_runner.evaluation.draw import Drawing, answer_log_probs, draw_many, policy_log_probs
from gfn_runner.evaluation.settings import EvaluationSettings
from gfn_runner.lm.loading import load
from gfn_runner.lm.policy import LanguageModel
from gfn_runner.lm.string_rule import string_rule
from gfn_runner.metrics.accuracy import posterior_predictive
from gfn_runner.rewards.reward import string_log_reward
from gfn_runner.runtime.files import read_yaml
from gfn_runner.runtime.seeds import torch_generator_for

Prompt = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Sample:
    """A string sampled from the policy.

    Attributes:
        text: without the terminator.
        log_q: log-probability under the policy at temperature 1, including the terminator, in nats.
        log_reward: untempered log R, in nats; ``None`` if the task cannot derive the posterior from the
            given prompt.
    """

    text: str
    log_q: float
    log_reward: float | None


class Policy:
    """A base model with the trained adapter of a run, and its answer adapter if it has one.

    Attributes:
        lm: the model; its adapter is active except within ``lm.reference()``.
        task: the task it was trained on; ``conditions`` are those of the task's data.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: Task,
        *,
        seed: int = 0,
        evaluation: EvaluationSettings | None = None,
        conditions: Sequence[Condition] = (),
    ):
        self.lm, self.task, self.seed = lm, task, seed
        self.evaluation = evaluation or EvaluationSettings()
        self.rule = string_rule(lm, task, task.eval_max_len)
        self._known = {condition.prompt: condition for condition in conditions}

    @classmethod
    def load(cls, folder: str | Path, *, device: str = "auto") -> Policy:
        """Load the policy from a run's folder.

        Args:
            folder: folder of a finished run, ``outputs/<task>/<date>/<time>``.
            device: as in ``lm.device``.

        Raises:
            UserError: if the folder contains no finished run, or its model is not found.
        """
        folder = Path(folder).expanduser()
        config = saved_config(folder)
        return cls.of(config, folder, device=device)

    @classmethod
    def of(cls, config: RunConfig, folder: Path, *, device: str | None = None) -> Policy:
        """Load the policy in ``folder`` with an already validated config."""
        chosen: Any = device or config.lm.device
        options = dataclasses.replace(config.lm, device=chosen)
        lm = load(options, adapter=adapter_folder(folder), seed=config.seed)
        load_answers(lm, folder)
        known = (*config.data.evaluation, *config.data.train)
        return cls(
            lm, config.task, seed=config.seed, evaluation=config.evaluation, conditions=known
        )

    def drawing(self, conditions: Sequence[Condition], temperature: float = 1.0) -> Drawing:
        """Return everything needed to draw and score samples; ``temperature`` is that of the posterior."""
        return Drawing(
            self.lm, self.task, self.rule, conditions, self.evaluation, self.seed, temperature
        )

    def condition(self, prompt: Prompt) -> Condition | None:
        """Return the condition (with its posterior) of a prompt, or ``None`` if the task cannot derive it."""
        prompt = _as_read(prompt)
        known = self._known.get(prompt)
        try:
            return known or self.task.condition_for(prompt, self.seed)
        except UserError:
            # Its context needs examples from data that can no longer be read.
            return None

    @torch.no_grad()
    def sample(
        self, prompt: Prompt, n: int = 10, *, temperature: float = 1.0, seed: int | None = None
    ) -> list[Sample]:
        """Draw ``n`` strings.

        Args:
            prompt: input of the policy, formatted as in training: a text, or the messages of a chat, each
                with ``role`` and ``content`` (as a list or as JSON). The chat template of training is used.
            n: number of strings.
            temperature: sampling temperature; 1 is the policy itself, 0 is greedy decoding.
            seed: seed of the draw; defaults to that of the run.

        Raises:
            UserError: if an argument is out of range, the chat template rejects the messages, or prompt and
                sample exceed the model's context length.
        """
        if not 0 <= temperature < math.inf:
            raise UserError.one(
                "temperature", f"given {temperature}", "a finite number, at least 0"
            )
        prompt = _as_read(prompt)
        condition = self.condition(prompt)
        self._check_length(prompt, condition)
        trajectories = self._draw(prompt, n, temperature, seed)
        prompts = [self.lm.encode_prompt(prompt)]
        log_q_B = policy_log_probs(self.lm, prompts, trajectories, self.rule)
        rewards: list[float | None] = [None] * n
        if condition is not None:
            log_reward_B, _ = string_log_reward(
                self.lm, [condition], trajectories, self.rule, self.task.constraints()
            )
            rewards = list(log_reward_B.tolist())
        texts = [self.lm.decode(trajectories.ids(row)) for row in range(n)]
        return [Sample(*values) for values in zip(texts, log_q_B.tolist(), rewards, strict=True)]

    @torch.no_grad()
    def predict(
        self, prompt: Prompt, answers: Sequence[str], n: int = 10, *, seed: int | None = None
    ) -> dict[str, float]:
        """Return the posterior predictive over the given answers, by Bayesian model averaging.

        ``p(Y | X) ≈ 1/n Σ_Z p_LM(Y | X Z)`` with Z from the policy (Hu et al. 2024, section 3.1), normalized
        over ``answers`` at the end: a Z under which all of them are improbable contributes little.

        Args:
            prompt: as for :meth:`sample`.
            answers: at least two different texts, as the task writes them; duplicates are ignored.
            n: number of strings Z.
            seed: seed of the draw.

        Returns:
            Probability of each answer; they sum to 1.

        Raises:
            UserError: if the task has no answers, or cannot derive the context from the prompt; otherwise as
                for :meth:`sample`.
        """
        answers = [answers] if isinstance(answers, str) else list(dict.fromkeys(answers))
        if len(answers) < 2:
            raise UserError.one("answers", f"given {answers}", "at least two different answers")
        prompt = _as_read(prompt)
        condition = self.condition(prompt)
        suffixes = [self.task.answer_suffix(answer) for answer in answers]
        unknown = [a for a, suffix in zip(answers, suffixes, strict=True) if suffix is None]
        if unknown and len(unknown) < len(answers):
            known = (
                [str(a) for _, a in self.task.answer_choices(condition, ())] if condition else []
            )
            raise UserError.one(
                "answers",
                f"given {unknown[0]!r}, which task {self.task.name} does not have",
                ", ".join(known) or "answers as the task writes them",
            )
        if condition is None or not condition.terms or unknown:
            raise UserError.one(
                "mode",
                f"task {self.task.name} cannot tell how an answer follows {prompt!r}",
                "mode=sample, or a prompt and a task whose samples lead to an answer",
            )
        texts = [suffix or "" for suffix in suffixes]
        self._check_length(prompt, condition, texts)
        trajectories = self._draw(prompt, n, 1.0, seed)
        drawing = self.drawing([condition])
        (log_p_KA,) = answer_log_probs(drawing, [condition], [texts], trajectories)
        share_A = posterior_predictive(log_p_KA)
        return dict(zip(answers, share_A.tolist(), strict=True))

    def _check_length(
        self, prompt: str, condition: Condition | None, suffixes: Sequence[str] = ()
    ) -> None:
        """Refuse prompts that leave no room for a string in the context; those of training were checked."""
        terms = condition.terms if condition is not None else ()
        around = [
            (prompt, ""),
            *((t.context, suffix) for t in terms for suffix in (t.suffix, *suffixes)),
        ]
        tokens = max(len(self.lm.encode_prompt(c)) + len(self.lm.encode(s)) for c, s in around)
        longest = self.lm.context_length
        if longest is not None and tokens + self.rule.max_len > longest:
            raise UserError.one(
                "prompt",
                f"it has {tokens} tokens, examples and answer included; with {self.rule.max_len} sampled tokens "
                f"that is more than the model's context of {longest}",
                f"at most {longest - self.rule.max_len} tokens",
                "a shorter prompt, or a smaller task.eval_max_len",
            )

    def _draw(self, prompt: str, n: int, temperature: float, seed: int | None) -> Trajectories:
        if n < 1:
            raise UserError.one("n", f"given {n}", "at least 1")
        name = self.seed if seed is None else seed
        generator = torch_generator_for(self.lm.device, "use", name, prompt)
        prompts = [self.lm.encode_prompt(prompt)]
        at = [temperature] * n
        return draw_many(self.drawing(()), prompts, at, generator)


def _as_read(prompt: Prompt) -> str:
    """Convert a prompt to the form used in conditions: a text, or a chat if messages are given."""
    if not isinstance(prompt, str):
        return Chat.of(prompt)
    if isinstance(prompt, Chat) or not prompt.lstrip().startswith("["):
        return prompt
    try:
        return Chat.of(json.loads(prompt)) if prompt.strip("[] \n") else prompt
    except (ValueError, TypeError, KeyError, RecursionError):
        return prompt


def adapter_folder(folder: Path) -> Path:
    """Return the folder of a run's adapter.

    Raises:
        UserError: if there is none.
    """
    adapter = folder / "adapter"
    if not (adapter / "adapter_config.json").is_file():
        raise UserError.one(
            "run",
            f"{folder} has no adapter: its run is not finished, or trained no policy",
            "the folder of a finished run, outputs/<task>/<date>/<time>",
            f"resume={folder} finishes an unfinished run",
        )
    return adapter


def saved_config(folder: Path) -> RunConfig:
    """Load and validate the config of the run in ``folder``.

    Raises:
        UserError: if it is missing or invalid; missing data files are accepted.
    """
    file = folder / "config.yaml"
    try:
        values = read_yaml(file, dict)
    except ValueError as error:
        allowed = "the folder of a run, outputs/<task>/<date>/<time>, with its config.yaml"
        raise UserError.one("run", f"{file} is unreadable: {error}", allowed) from None
    return check(values, needs_data=False)
