"""What a judge is known by in a file of verdicts: the same in another process, another once its code is edited."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from types import CodeType
from typing import Any

from pairgrpo_jax.lm.rewards.asking import digest

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_FIXED = (str, bytes, int, float, complex, bool, tuple, frozenset, type(None))


def identity_of(function: Callable) -> Any:
    """Its own `identity`; else module, name and a digest of its code, with the arguments of a partial and, of an
    object, its class and the fields of a dataclass.
    """
    if own := getattr(function, "identity", None):
        return own
    if isinstance(function, functools.partial):
        return ["partial", identity_of(function.func), _stable(function.args), _stable(function.keywords)]
    if inspect.ismethod(function):
        return [_object(function.__self__), identity_of(function.__func__)]
    inner = getattr(function, "__wrapped__", None)
    own = _function(function) if inspect.isroutine(function) else _object(function)
    return own if inner is None else [own, identity_of(inner)]


def _named(thing: Any) -> list[str]:
    return [str(getattr(thing, "__module__", "")), getattr(thing, "__qualname__", "")]


def _object(thing: Any) -> list[Any]:
    """Its class, how that is called, and its fields."""
    fields = dataclasses.fields(thing) if dataclasses.is_dataclass(thing) else ()
    values = {field.name: _stable(getattr(thing, field.name)) for field in fields}
    return [_named(type(thing)), _function(getattr(type(thing), "__call__", None)), values]  # noqa: B004


def _function(function: Any) -> list[Any]:
    """A function by its name, code, defaults and what it encloses that cannot change; of a builtin, the name."""
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return _named(function)
    enclosed = [_enclosed(cell) for cell in function.__closure__ or ()]
    return [
        *_named(function),
        digest(_stable(code), _stable([function.__defaults__, function.__kwdefaults__]), enclosed),
    ]


def _enclosed(cell: Any) -> Any:
    try:
        value = cell.cell_contents
    except ValueError:  # not set yet
        return None
    return _stable(value) if isinstance(value, _FIXED) or inspect.isfunction(value) else _named(type(value))


def _stable(value: Any) -> Any:
    """A value's repr without addresses, the members of sets in order; code without where it stands in its file."""
    if isinstance(value, CodeType):
        return [value.co_code.hex(), value.co_names, value.co_varnames, value.co_freevars, _stable(value.co_consts)]
    if isinstance(value, tuple | list):
        return [type(value).__name__, *map(_stable, value)]
    if isinstance(value, set | frozenset):
        return [type(value).__name__, *sorted(map(repr, value))]
    if isinstance(value, dict):
        return {repr(name): _stable(one) for name, one in value.items()}
    return _function(value) if inspect.isfunction(value) else _ADDRESS.sub("", repr(value))
