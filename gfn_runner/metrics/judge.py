"""A language model as judge: ratings from 1 to 5 from any OpenAI-compatible endpoint.

Judged texts leave the machine: they are sent to ``base_url``. A failed request, or a reply without a
clear rating, is a failure: it is counted and reported, and no rating is substituted.
"""

from __future__ import annotations

import importlib.util
import os
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings

from gfn_runner.errors import Problem, UserError
from gfn_runner.runtime.local_paths import LocalPath

KEY = "evaluation.judge"
PROMPTS = Path(__file__).parent / "prompts"
# Placeholders of a prompt; a story's beginning and ending are empty outside infilling.
FIELDS = ("prompt", "sample", "middle", "beginning", "ending")


@settings(frozen=True, config=ConfigDict(extra="forbid"))
class JudgeSettings:
    """Settings of a judge and its prompt.

    Attributes:
        base_url: URL of the endpoint, such as ``http://localhost:8000/v1``.
        model: name of the model at the endpoint.
        prompt_file: a text file with placeholders such as ``{prompt}`` and ``{sample}``, or the name
            of a shipped one: ``continuation.txt``, ``story_middle.txt``.
        api_key_env: name of the environment variable that holds the key; ``None`` for endpoints
            without keys. The key itself is never in a config.
        max_samples: maximum number of samples to judge; later ones are skipped.
        timeout: timeout per request, seconds.
        retries: retries of a request after a possibly transient failure, with growing pauses.
        temperature: sampling temperature of the judge; ``None`` for models that do not accept one.
        give_up_after: number of failed requests in a row after which no more are sent.
    """

    base_url: str
    model: str
    prompt_file: Annotated[str, LocalPath()] = "continuation.txt"
    api_key_env: str | None = None
    max_samples: Annotated[int, Field(ge=1)] = 100
    timeout: Annotated[float, Field(gt=0)] = 60.0
    retries: Annotated[int, Field(ge=0)] = 2
    temperature: Annotated[float, Field(ge=0)] | None = 0.0
    give_up_after: Annotated[int, Field(ge=1)] = 5

    def problems(self) -> Iterator[Problem]:
        """Yield settings that are impossible, without sending a request."""
        if importlib.util.find_spec("openai") is None:
            yield Problem(
                KEY,
                "needs the package openai, which is not installed",
                "null for no judge",
                "pip install 'gfn-runner[judge]'",
            )
        if not self.base_url.startswith(("http://", "https://")):
            yield Problem(
                f"{KEY}.base_url", f"given {self.base_url!r}", "a URL, http://… or https://…"
            )
        yield from self._key_problems()
        try:
            read_prompt(self.prompt_file)
        except UserError as error:
            yield from error.problems

    def _key_problems(self) -> Iterator[Problem]:
        name = self.api_key_env
        if name is None:
            return
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            # The value is not shown: it may be the key itself.
            yield Problem(
                f"{KEY}.api_key_env",
                "this is not the name of an environment variable",
                "the name of the variable that holds the key, not the key; null for no key",
            )
        elif not os.environ.get(name):
            yield Problem(
                f"{KEY}.api_key_env",
                f"the environment variable {name} is not set",
                "the name of a variable that holds the key; null for no key",
                f"export {name}=…",
            )


@dataclass(frozen=True)
class Verdict:
    """Ratings by a judge.

    Attributes:
        ratings: one rating per sample to be judged, 1 to 5; ``None`` where there is none.
        failures: number of missing ratings by reason.
    """

    ratings: tuple[float | None, ...]
    failures: Mapping[str, int]

    def metrics(self) -> dict[str, float]:
        """Return ``judge_rating`` (absent if nothing was rated), ``judge_rated`` and ``judge_failures``."""
        rated = [rating for rating in self.ratings if rating is not None]
        named = {"judge_rating": fmean(rated)} if rated else {}
        failed = len(self.ratings) - len(rated)
        return named | {"judge_rated": float(len(rated)), "judge_failures": float(failed)}


class Judge:
    """Judge that rates samples, one request each.

    Args:
        options: settings without :meth:`~JudgeSettings.problems`.
    """

    def __init__(self, options: JudgeSettings):
        from openai import OpenAI

        self.options = options
        self.prompt = read_prompt(options.prompt_file)
        key = os.environ[options.api_key_env] if options.api_key_env else "none"
        # Passed explicitly, since the client would otherwise look for a key in the environment.
        self._client = OpenAI(
            api_key=key,
            base_url=options.base_url,
            timeout=options.timeout,
            max_retries=options.retries,
        )

    def rate(self, samples: Sequence[Mapping[str, str]]) -> Verdict:
        """Rate the first ``max_samples`` samples, one after the other.

        Args:
            samples: values of the prompt's placeholders, by the names in ``FIELDS``.
        """
        ratings: list[float | None] = []
        failures: Counter[str] = Counter()
        failed_in_a_row = 0
        for sample in samples[: self.options.max_samples]:
            reply, reason = None, f"not asked after {failed_in_a_row} failed requests"
            if failed_in_a_row < self.options.give_up_after:
                reply, reason = self._ask(self.prompt.format_map(sample))
                failed_in_a_row = failed_in_a_row + 1 if reply is None else 0
            ratings.append(None if reply is None else rating_in(reply))
            if ratings[-1] is None:
                failures[reason or "no clear rating from 1 to 5 in the reply"] += 1
        return Verdict(tuple(ratings), dict(failures))

    def _ask(self, text: str) -> tuple[str | None, str]:
        """Return the judge's reply, or ``None`` and the reason why there is none."""
        from openai import APIStatusError, OpenAIError

        extra: dict[str, Any] = {}
        if self.options.temperature is not None:
            extra["temperature"] = self.options.temperature
        try:
            answer: Any = self._client.chat.completions.create(
                model=self.options.model, messages=[{"role": "user", "content": text}], **extra
            )
        except APIStatusError as error:
            # Without the server's message, which may repeat the key.
            return None, f"the endpoint answered with status {error.status_code}"
        except (OpenAIError, ValueError) as error:
            return None, f"the request failed: {type(error).__name__}"
        choices = getattr(answer, "choices", None)
        if not choices:
            return None, "the endpoint's answer has no choices"
        return choices[0].message.content or "", ""


# "Rating: 4", as the prompts request, or a number alone on its line; on the scale from 1 to 5.
_RATING = re.compile(
    r"(?:^[ \t*_]*|\b(?:rating|score)\b\W*)([1-4](?:\.[0-9]+)?|5(?:\.0+)?)\**(?:\s*/\s*5)?[ \t.*_]*$",
    re.IGNORECASE | re.MULTILINE,
)


def rating_in(reply: str) -> float | None:
    """Return the last rating from 1 to 5 in a reply, or ``None``; numbers amid other text do not count."""
    found = _RATING.findall(reply)
    return float(found[-1]) if found else None


def read_prompt(file: str) -> str:
    """Read the text of a prompt file.

    Args:
        file: a path, or the name of a shipped prompt.

    Raises:
        UserError: if there is no such file, or its placeholders are malformed, missing or not in ``FIELDS``.
    """
    key = f"{KEY}.prompt_file"
    path = Path(file).expanduser()
    if not path.is_file():
        path = PROMPTS / file
    if not path.is_file():
        shipped = ", ".join(sorted(known.name for known in PROMPTS.glob("*.txt")))
        raise UserError.one(key, f"no file {file}", f"a path, or one of {shipped}")
    try:
        text = path.read_text(encoding="utf-8")
        names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
    except ValueError as error:
        allowed = "UTF-8 text with placeholders such as {sample}; other braces are doubled"
        raise UserError.one(key, f"{path}: {error}", allowed) from error
    if not names:
        raise UserError.one(
            key, f"{path} has no placeholder, so the judge would not see a sample", "{sample}, say"
        )
    unknown = sorted(names - set(FIELDS))
    if unknown:
        allowed = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise UserError.one(key, f"{path} has the placeholder {{{unknown[0]}}}", allowed)
    return text
