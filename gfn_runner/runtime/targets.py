"""`_target_` nodes of a config: validated against the target's signature, then instantiated.

A node's arguments are those of a class's constructor (or of a function). The type hints of the signature are
the schema: ``Annotated[int, Field(ge=1)]`` bounds a value, a nested pydantic dataclass takes a mapping. A
constructor that forwards ``**options`` to its base class accepts the base's arguments too. Functions raise
a ``UserError`` that lists all problems, each with its config key.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError

from gfn_runner.errors import Problem, UserError, did_you_mean

# Constructors of these libraries convert values themselves.
_LIBRARIES = ("lightning", "torch", "torchmetrics", "transformers", "wandb")
_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
_MOST_SHOWN = 40  # names listed in an error


def target_of(key: str, node: Any, base: type | None = None) -> Callable[..., Any]:
    """Import the ``_target_`` of a node."""
    allowed = f"a subclass of {base.__name__}" if base else "the import path of a class"
    if not isinstance(node, Mapping):
        choice = f"{key.replace('.', '/')}={node} for a choice of the group"
        raise UserError.one(key, f"given {node!r}", f"a config with a _target_: {allowed}", choice)
    where, path = f"{key}._target_", node.get("_target_")
    if not isinstance(path, str) or "." not in path:
        what = "missing" if path is None else f"given {path!r}"
        raise UserError.one(where, what, allowed)
    module, _, name = path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module), name)
    except Exception as error:  # importing user code may raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError.one(where, f"cannot import {path!r}: {reason}", allowed) from error
    if base and not (isinstance(target, type) and issubclass(target, base)):
        raise UserError.one(where, f"given {path!r}", allowed)
    if not callable(target):
        raise UserError.one(where, f"given {path!r}, which cannot be called", allowed)
    return target


def checked_arguments(
    key: str, node: Mapping[str, Any], target: Callable[..., Any], runtime: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Validate a node's arguments and convert them to the types of the target's signature.

    A nested ``_target_`` node is returned as is; the object that it creates is validated in its place.

    Args:
        runtime: arguments that the program supplies rather than the config.
    """
    nested = {name: value for name, value in node.items() if _is_node(value)}
    return _arguments_with_objects(key, node, target, runtime) | nested


def with_objects(key: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the node in which nested ``_target_`` nodes are instantiated."""
    return {
        name: instantiate(f"{key}.{name}", value) if _is_node(value) else value
        for name, value in node.items()
    }


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


def _arguments_with_objects(
    key: str, node: Mapping[str, Any], target: Callable[..., Any], runtime: tuple[str, ...]
) -> dict[str, Any]:
    given = {k: value for k, value in with_objects(key, node).items() if k not in _HYDRA}
    if inspect.isclass(target) and hasattr(target, "__pydantic_fields__"):
        instance = validated(key, given, target)
        return {name: getattr(instance, name) for name in given}
    model = _arguments(target, runtime)
    if model is None:
        return given
    try:
        checked = model.model_validate(given)
    except ValidationError as error:
        partial = bool(node.get("_partial_"))
        wrong = [e for e in error.errors() if not (partial and e["type"] == "missing")]
        if wrong:
            raise UserError(_problems(key, model, wrong)) from None
        return given
    library = str(getattr(target, "__module__", "")).partition(".")[0]
    # For libraries, the types are checked but values are passed unchanged: they convert them themselves.
    return given if library in _LIBRARIES else {name: getattr(checked, name) for name in given}


def instantiate(key: str, node: Mapping[str, Any], base: type | None = None, **runtime: Any) -> Any:
    """Instantiate a node's target with its validated arguments and those supplied by the program."""
    target = target_of(key, node, base)
    arguments = _arguments_with_objects(key, node, target, tuple(runtime))
    if node.get("_partial_"):
        return functools.partial(target, **arguments, **runtime)
    try:
        return target(**arguments, **runtime)
    except UserError:
        raise
    except ValidationError as error:
        raise explained(key, target, error) from error
    except Exception as error:  # user code may raise anything
        what = f"{_name(target)} raises {type(error).__name__}: {error}"
        raise UserError.one(key, what, "arguments that it takes") from error


def validated(key: str, given: Any, kind: Any) -> Any:
    """Validate the value of the config key ``key`` and convert it to the type ``kind``."""
    if hasattr(kind, "__pydantic_fields__") and not isinstance(given, Mapping):
        raise UserError.one(key, f"given {given!r}", f"keys: {', '.join(_fields(kind))}")
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        raise explained(key, kind, error) from error


def explained(key: str, kind: Any, error: ValidationError) -> UserError:
    """Convert a pydantic error to problems: full key, what was given, what is allowed."""
    return UserError(_problems(key, kind, error.errors()))


def _problems(key: str, kind: Any, errors: Sequence[Any]) -> list[Problem]:
    """Merge errors to one problem per key: a union has an error for each of its types, all allowed."""
    found: dict[str, Problem] = {}
    for problem in (_problem(key, kind, one) for one in errors):
        first = found.setdefault(problem.where, problem)
        if problem.what == first.what and problem.allowed not in first.allowed:
            allowed = f"{first.allowed} or {problem.allowed}"
            found[problem.where] = dataclasses.replace(first, allowed=allowed)
    return list(found.values())


def unknown_key(key: str, name: str, known: list[str]) -> Problem:
    """Report an unknown key, with the closest existing one."""
    fix = did_you_mean(name, known, key[: len(key) - len(name)])
    return Problem(key, "unknown key", ", ".join(known[:_MOST_SHOWN]), fix)


def argument_hints(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of a target's arguments."""
    fields = None if _arguments(target, ()) is None else _signature_fields(target, ())
    return {name: hint for name, (hint, _) in (fields or {}).items()}


# -- signatures ---------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _arguments(target: Callable[..., Any], runtime: tuple[str, ...]) -> type[BaseModel] | None:
    """Build a model of a target's arguments; ``None`` if it takes any, or its hints cannot be resolved."""
    try:
        fields = _signature_fields(target, runtime)
        if fields is None:
            return None
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
        return create_model(_name(target), __config__=config, **fields)
    except (NameError, TypeError, ValueError, PydanticUserError):
        return None  # hints that only type checkers understand


def _signature_fields(
    target: Callable[..., Any], runtime: tuple[str, ...]
) -> dict[str, Any] | None:
    """Return type and default of every argument, including those forwarded to base classes."""
    constructors: list[Any] = (
        [vars(kind)["__init__"] for kind in target.__mro__ if "__init__" in vars(kind)]
        if inspect.isclass(target)
        else [target]
    )
    fields: dict[str, Any] = {}
    hidden = {*runtime, *getattr(target, "runtime_arguments", ())}
    for constructor in constructors:
        signature = inspect.signature(constructor)
        hints = get_type_hints(constructor, include_extras=True)
        names = list(signature.parameters.values())
        for parameter in names[1:] if inspect.isclass(target) else names:
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.name not in hidden:
                default = ... if parameter.default is parameter.empty else parameter.default
                fields.setdefault(parameter.name, (hints.get(parameter.name, Any), default))
        if not any(p.kind is p.VAR_KEYWORD for p in names):
            return fields
    return None  # the last constructor takes any keyword


def _problem(key: str, kind: Any, error: Any) -> Problem:
    location = [part for part in error["loc"] if part != "nullable"]
    path, at = key, kind
    for part in location:
        inside = _type_at(at, part)
        if inside is None and isinstance(part, str):
            break  # a branch of a union, named after its type
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
        at = inside
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        name = str(location[-1])
        whole = path if path.endswith(f".{name}") else f"{path}.{name}"
        return unknown_key(whole, name, list(_fields(at)))
    if error["type"] == "missing":
        return Problem(path if path != key else f"{key}.{location[-1]}", "missing", "a value")
    if error["type"] == "dataclass_type":
        return Problem(path, f"given {error['input']!r}", f"keys: {', '.join(_fields(at))}")
    allowed = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    allowed = re.sub(r", (unable to|got) .*", "", allowed)  # why it is not allowed
    return Problem(path, f"given {error['input']!r}", allowed)


def _type_at(kind: Any, part: Any) -> Any:
    """Return the type of a field; ``Any`` within a list, ``None`` if there is no such field."""
    if isinstance(part, int):
        return Any
    fields = _fields(kind)
    return fields[part].annotation if part in fields else (Any if kind is Any else None)


def _fields(kind: Any) -> Mapping[str, Any]:
    """Return the fields of a model or settings class, or of the first one in a union."""
    for name in ("model_fields", "__pydantic_fields__"):
        if found := getattr(kind, name, None):
            return found
    options = [a for a in getattr(kind, "__args__", ()) if hasattr(a, "__pydantic_fields__")]
    return _fields(options[0]) if options else {}


def _name(target: Callable[..., Any]) -> str:
    return getattr(target, "__name__", str(target))
