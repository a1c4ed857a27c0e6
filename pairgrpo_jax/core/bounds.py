"""Bounds of settings: each is written once, beside its field, and checked when the object is made.

@dataclass(frozen=True)
class Example(Settings):
    clip: Annotated[float, AtLeast(0)] = 0.2
    fit: Literal["reverse", "forward"] = "reverse"
"""

from __future__ import annotations

import dataclasses
import functools
import math
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

import jax
import numpy as np

from pairgrpo_jax.core.checks import require_choice


class Bound(NamedTuple):
    """An interval; `ends` such as "(]" leaves an end out."""

    low: float
    high: float = math.inf
    ends: str = "[]"

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside; NaN does not."""
        above = value >= self.low if self.ends[0] == "[" else value > self.low
        return above and (value <= self.high if self.ends[1] == "]" else value < self.high)

    def __str__(self):
        if self.high == math.inf:
            return f"{'>=' if self.ends[0] == '[' else '>'} {self.low}"
        return f"in {self.ends[0]}{self.low}, {self.high}{self.ends[1]}"


AtLeast = Within = Bound
RENAMED = {"trace": "gae_lambda"}  # what settings were called in files of runs made before
OR_NONE = "inf for none"  # beside a bound: infinity is a value too


LAST_SEED = 2**32 - 1
Seed = Annotated[int, Within(0, LAST_SEED)]  # of jax.random.key, which takes the rest away, and numpy


def Above(low: float) -> Bound:
    """More than `low`."""
    return Bound(low, ends="(]")


class Settings:
    """Base of frozen dataclasses whose fields carry their bounds.

    Raises:
      ValueError: on construction, for a value that is out of its field's bounds or none of its choices. Arrays, traced
        ones too, pass unchecked, so that settings can be mapped over.
    """

    def __post_init__(self):
        for name, hint in field_types(type(self)).items():
            _check(name, getattr(self, name), hint)

    def replace(self, **changes) -> Self:
        """A copy with some fields changed; a name that is none of its own changes the part that has it."""
        mine = field_types(type(self))
        for part in [name for name in mine if isinstance(getattr(self, name), Settings) and name not in changes]:
            value = getattr(self, part)
            inner = {name: changes.pop(name) for name in list(changes) if name not in mine and value.has(name)}
            changes |= {part: value.replace(**inner)} if inner else {}
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def has(self, name: str) -> bool:
        """Whether it, or a part of it, has a field of this name."""
        parts = (getattr(self, field) for field in field_types(type(self)))
        return name in field_types(type(self)) or any(isinstance(x, Settings) and x.has(name) for x in parts)


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """The annotated type of every field of a dataclass."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def bare(hint: Any) -> tuple[Any, list]:
    """A type without `Annotated` and `None`, and what it was annotated with."""
    notes: list = []
    if get_origin(hint) is Annotated:
        hint, *notes = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        hint = next(one for one in get_args(hint) if one is not type(None))
    return hint, notes


def _check(name: str, value: Any, hint: Any) -> None:
    kind, notes = bare(hint)
    if value is None and type(None) in get_args(get_args(hint)[0] if notes else hint):
        return
    if get_origin(kind) is Literal:
        require_choice(name, value, get_args(kind))
    if kind is bool and not isinstance(value, (bool, np.bool_, jax.Array)):
        raise ValueError(f"{name} must be True or False, got {value!r}")
    if kind not in (int, float) or isinstance(value, jax.Array):
        return
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if kind is int and not isinstance(value, (int, np.integer)):
        raise ValueError(f"{name} must be a whole number, got {value}")
    for bound in notes:
        if isinstance(bound, Bound) and not bound.holds(float(value)):
            raise ValueError(f"{name} must be {bound}, got {value}")
    if kind is float and not math.isfinite(value) and not (value == math.inf and OR_NONE in notes):
        raise ValueError(f"{name} must be finite, got {value}")


def require_idle(settings: Settings, name: str, why: str) -> None:
    """Raises ValueError if a field that has no effect was changed from its default."""
    default = type(settings).__dataclass_fields__[name].default  # type: ignore[attr-defined]
    if getattr(settings, name) != default:
        raise ValueError(f"{name}={getattr(settings, name)!r} has no effect {why}; leave it at {default!r}")


def to_values(settings: Any) -> Any:
    """A (nested) dataclass as JSON-able values; one of several classes carries its `name`, tuples become lists."""
    if dataclasses.is_dataclass(settings):
        named = {"name": settings.name} if hasattr(type(settings), "named") else {}  # type: ignore[attr-defined]
        return named | {f.name: to_values(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, (tuple, list)):
        return [to_values(x) for x in settings]
    if isinstance(settings, np.generic):
        return settings.item()
    return settings if isinstance(settings, (bool, int, float, str, type(None))) else str(settings)


def from_values(cls: Any, values: dict[str, Any]) -> Any:
    """The dataclass of `to_values`; ValueError that names a field which it does not have."""
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    if hasattr(cls, "named"):
        cls = cls.named(values.pop("name"))
    kinds = {name: bare(hint)[0] for name, hint in field_types(cls).items()}
    if extra := sorted(values.keys() - kinds.keys()):
        raise ValueError(f"config.json: {cls.__name__} has no setting {', '.join(extra)}")

    def read(kind: Any, value: Any) -> Any:
        if value is None:
            return None
        if dataclasses.is_dataclass(kind):
            return from_values(kind, value)
        if isinstance(value, list):
            return tuple(value)
        return kind(value) if isinstance(kind, type) and not isinstance(value, kind) else value

    return cls(**{name: read(kinds[name], value) for name, value in values.items()})
