"""`_target_` nodes: arguments are validated and converted by the constructor's signature."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from pydantic.dataclasses import dataclass

from gfn_runner.errors import Problem, UserError
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


def node(target: type, **arguments) -> dict:
    return {"_target_": f"{__name__}.{target.__qualname__}", **arguments}


def problems_of(node: dict) -> dict[str, Problem]:
    with pytest.raises(UserError) as caught:
        instantiate("callbacks.own", node, L.Callback)
    return {p.where.removeprefix("callbacks.own"): p for p in caught.value.problems}


def test_a_users_class_gets_values_in_the_types_of_its_hints():
    own = node(Own, options={"a": "3"}, names=["a", "b"], where="here", x=1)
    given = instantiate("callbacks.own", own, L.Callback).given
    assert given == (Options(3), ("a", "b"), Path("here"), 1.0)


def test_every_wrong_argument_is_a_problem_of_its_own():
    found = problems_of(node(Own, options={"a": "three"}, nams=[], where="here", x="much"))
    assert found[".nams"].fix == "did you mean callbacks.own.names?"
    assert found[".x"].allowed == "a valid number"
    assert {".names", ".options.a"} <= found.keys()


def test_all_types_of_a_union_are_allowed():
    (problem,) = problems_of(node(Either, x="much")).values()
    assert problem.allowed == "a valid integer or a valid boolean"


def test_a_node_within_a_node_is_validated_and_instantiated():
    inner = node(Own, options={"a": "3"}, names=["a"], where="here")
    outer = node(Either, inner=inner)
    assert instantiate("callbacks.own", outer, L.Callback).inner.given[0] == Options(3)
    assert checked_arguments("callbacks.own", outer, Either) == {"inner": inner}
    assert problems_of(node(Either, inner=inner | {"x": "much"})).keys() == {".inner.x"}


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("nowhere.Nothing", "ModuleNotFoundError: No module named 'nowhere'"),
        ("lightning.Nothing", "AttributeError: module 'lightning' has no attribute 'Nothing'"),
    ],
)
def test_a_target_that_cannot_be_imported_is_one_line(path, cause):
    (problem,) = problems_of({"_target_": path}).values()
    assert problem.what == f"cannot import {path!r}: {cause}"


def test_what_a_constructor_raises_is_a_user_error():
    (problem,) = problems_of(node(Raises)).values()
    assert "raises AttributeError: no such thing" in problem.what
