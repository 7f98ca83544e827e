"""A valid config with one entry changed at random is refused with that key named, or stays as it is by yaml."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hypothesis import given, note
from hypothesis import strategies as st
from omegaconf import OmegaConf

from gfn_runner.config.compose import CONF
from gfn_runner.config.validation import check
from gfn_runner.errors import UserError
from tests.budget import examples
from tests.fuzz.bounded import at_most

BASES = (
    ("task=arithmetic", "task.data.n_test=4", "task.data.n_answers=20", "task.data.n_rationales=8"),
    ("task=random_number", "objective=tb"),
    ("task=constrained", "baseline=ppo", "task.data.n_train=4", "task.data.n_test=2"),
    ("task=infilling", "objective=subtb", "task.data.n_train=4", "task.data.n_test=2"),
    ("task=posterior", "baseline=resampling"),
    ("experiment=tiny/smoke", "em=once"),
)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**9, 10**30, -(10**30), 0.0, 0.5, -0.5, 1e-300, 1e308, float("nan"),
    float("inf"), "", "x", "0", "1e400", "null", "a\nb", "\0", "模型", "x" * 5_000, [], [1], ["x"], [[]], {}, {"x": 1},
    {"_target_": "gfn_runner.no_such.Thing"}, {"_target_": 3}, [None], [{}],
)  # fmt: skip


@functools.cache
def base(lines: tuple[str, ...]) -> dict[str, Any]:
    with initialize_config_dir(version_base=None, config_dir=str(CONF)):
        composed = compose("config", overrides=[*lines], return_hydra_config=True)
    plain = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    return OmegaConf.to_container(plain, resolve=True)


def paths(tree: Any, before: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every entry, inner ones too."""
    found = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        found.append((*before, key))
        if isinstance(value, (dict, list)):
            found += paths(value, (*before, key))
    return found


def changed(values: dict[str, Any], path: tuple[Any, ...], kind: str, value: Any) -> str:
    """Change one entry in place; returns the name that a refusal has to mention."""
    tree = values
    for key in path[:-1]:
        tree = tree[key]
    if kind == "value":
        tree[path[-1]] = value
    elif kind == "drop" or isinstance(tree, list):
        del tree[path[-1]]
    else:
        tree[f"{path[-1]}x"] = tree.pop(path[-1])
        return f"{path[-1]}"
    names = [str(key) for key in path if not isinstance(key, int)]
    return names[-1]


@pytest.mark.parametrize("lines", BASES, ids=" ".join)
def test_the_configs_are_valid_and_stay_so_by_yaml(lines):
    assert_round_trip(check(copy.deepcopy(base(lines))))


def assert_round_trip(config) -> None:
    written = yaml.safe_dump(config.values, allow_unicode=True, sort_keys=False)
    again = check(yaml.safe_load(written))
    assert repr(again.values) == repr(config.values)  # NaN is no equal of itself


@given(st.data())
@examples(15)
def test_a_changed_entry_is_taken_or_refused_by_name(data):
    lines = data.draw(st.sampled_from(BASES))
    values = copy.deepcopy(base(lines))
    path = data.draw(st.sampled_from(paths(values)))
    kind = data.draw(st.sampled_from(["value", "value", "value", "drop", "rename"]))
    value = copy.deepcopy(data.draw(st.sampled_from(VALUES)))
    name = changed(values, path, kind, value)
    note(f"{lines}: {kind} {path} {value!r}")
    try:
        with at_most(20.0):
            config = check(values)
    except UserError as error:
        places = " ".join(f"{p.where} {p.what} {p.allowed} {p.fix}" for p in error.problems)
        assert name in places, places
        assert all("\n" not in p.where and len(str(p)) < 6_000 for p in error.problems)
    else:
        assert_round_trip(config)
