"""Rows of a Hugging Face dataset, given as ``hub:owner/name:split[:column]``.

The ``datasets`` library is optional (``pip install 'gfn-runner[hub-data]'``) and imported on first use.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from typing import Any

from gfn_runner.errors import Problem, UserError

PREFIX = "hub:"
FORM = "hub:owner/name:split, hub:owner/name/subset:split; for prompts with :column after it"
# A split may be a slice such as "train[:500]", which contains a colon inside its brackets.
_SOURCE = re.compile(
    r"hub:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:/(?P<subset>[\w.-]+))?"
    r":(?P<split>[\w.-]+(?:\[[^\]\s]*\])?)(?::(?P<column>[^:\s][^:]*))?"
)


def is_hub(path: str) -> bool:
    """Return whether a path refers to a dataset on the hub rather than to a file."""
    return path.startswith(PREFIX)


def parse_source(path: str) -> dict[str, Any]:
    """Parse a hub path into ``name``, ``subset``, ``split`` and ``column``; missing parts are ``None``.

    Raises:
        UserError: if the path is not of the form ``hub:owner/name[/subset]:split[:column]``.
    """
    found = _SOURCE.fullmatch(path)
    if found is None:
        raise UserError.one(path, "not the name of a data set and its split", FORM)
    return found.groupdict()


def source_problems(path: str) -> Iterator[Problem]:
    """Yield the problems of a hub path, without contacting the hub."""
    try:
        parse_source(path)
    except UserError as error:
        yield from error.problems
    if importlib.util.find_spec("datasets") is None:
        yield Problem(
            path,
            "the package datasets, which reads it, is not installed",
            "a file, or a data set of the hub with that package",
            "pip install 'gfn-runner[hub-data]'",
        )


def hub_rows(path: str) -> list[dict[str, Any]]:
    """Return all rows of a split in order, without fields that are ``None``, including nested ones.

    Raises:
        UserError: if the path is malformed, or the library or the dataset is missing.
    """
    problems = list(source_problems(path))
    if problems:
        raise UserError(problems)
    source = parse_source(path)
    import datasets

    try:
        rows = datasets.load_dataset(source["name"], source["subset"], split=source["split"])
        return [_without_none(dict(row)) for row in rows]
    except Exception as error:  # the library raises many types of exceptions
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        allowed = f"a data set that can be reached, as {FORM}"
        raise UserError.one(path, f"cannot be read: {reason[:300]}", allowed) from error


def _without_none(value: Any) -> Any:
    """Remove ``None`` values, which a table's columns hold where a record lacks a field."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
