"""`_target_` nodes: arguments are validated and converted by the constructor's signature."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from pydantic.dataclasses import dataclass

from gfn_runner.errors import UserError
from gfn_runner.runtime.targets import checked_arguments, instantiate


@dataclass
class Options:
    a: int = 1


class Own(L.Callback):
    """As a user writes one."""

    def __init__(self, options: Options, names: tuple[str, ...], where: Path, x: float = 1.0):
        self.given = (options, names, where, x)


class Raises(L.Callback):
    def __init__(self):
        raise AttributeError("no such thing")


class Either(L.Callback):
    def __init__(self, x: int | bool | None = None, inner: Own | None = None):
        self.inner = inner


PATH = f"{__name__}.Own"


def test_a_users_class_gets_values_in_the_types_of_its_hints():
    node = {"_target_": PATH, "options": {"a": "3"}, "names": ["a", "b"], "where": "here", "x": 1}
    assert instantiate("callbacks.own", node, L.Callback).given == (
        Options(3),
        ("a", "b"),
        Path("here"),
        1.0,
    )


def test_every_wrong_argument_is_a_problem_of_its_own():
    node = {
        "_target_": PATH,
        "options": {"a": "three"},
        "nams": [],
        "where": "here",
        "x": "much",
    }
    with pytest.raises(UserError) as caught:
        instantiate("callbacks.own", node, L.Callback)
    found = {problem.where: problem for problem in caught.value.problems}
    assert found["callbacks.own.nams"].fix == "did you mean callbacks.own.names?"
    assert found["callbacks.own.x"].allowed == "a valid number"
    assert {"callbacks.own.names", "callbacks.own.options.a"} <= found.keys()


def test_all_types_of_a_union_are_allowed():
    node = {"_target_": f"{__name__}.Either", "x": "much"}
    with pytest.raises(UserError) as caught:
        instantiate("callbacks.either", node, L.Callback)
    (problem,) = caught.value.problems
    assert problem.allowed == "a valid integer or a valid boolean"


def test_a_node_within_a_node_is_validated_and_instantiated():
    inner = {"_target_": PATH, "options": {"a": "3"}, "names": ["a"], "where": "here"}
    node = {"_target_": f"{__name__}.Either", "inner": inner}
    assert instantiate("callbacks.either", node, L.Callback).inner.given[0] == Options(3)
    assert checked_arguments("callbacks.either", node, Either) == {"inner": inner}
    with pytest.raises(UserError) as caught:
        instantiate("callbacks.either", {**node, "inner": {**inner, "x": "much"}}, L.Callback)
    assert [problem.where for problem in caught.value.problems] == ["callbacks.either.inner.x"]


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("nowhere.Nothing", "ModuleNotFoundError: No module named 'nowhere'"),
        ("lightning.Nothing", "AttributeError: module 'lightning' has no attribute 'Nothing'"),
    ],
)
def test_a_target_that_cannot_be_imported_is_one_line(path, cause):
    with pytest.raises(UserError) as caught:
        instantiate("callbacks.own", {"_target_": path}, L.Callback)
    assert caught.value.problems[0].what == f"cannot import {path!r}: {cause}"


def test_what_a_constructor_raises_is_a_user_error():
    with pytest.raises(UserError, match="raises AttributeError: no such thing"):
        instantiate("callbacks.own", {"_target_": f"{__name__}.Raises"}, L.Callback)
