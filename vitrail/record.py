"""Dataclasses of ours as plain JSON values, and back with every mistake named."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vitrail.config import suggestion
from vitrail.errors import UserError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass of ours as plain JSON values (tuples become lists)."""
    plain: dict[str, Any] = _plain(dataclasses.asdict(config))
    return plain


def from_dict(cls: type[T], data: Mapping[str, Any], where: str = "the configuration") -> T:
    """Read back what ``to_dict`` wrote.

    Raises:
        UserError: a field is unknown, missing or of the wrong type; ``where`` names the file.
    """
    if not isinstance(data, Mapping):
        raise UserError(f"{where} should hold a table for {cls.__name__}, not {type(data).__name__}.")
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := set(data) - set(fields):
        raise UserError(f"{where} has a field {min(unknown, key=str)!r} that this version of Vitrail does not know.")
    hints = get_type_hints(cls)
    values = {name: _typed(hints[name], value, f"{where}, field {name!r}") for name, value in data.items()}
    for name, entry in fields.items():
        if name not in values and entry.default is entry.default_factory is dataclasses.MISSING:
            raise UserError(f"{where} lacks the field {name!r}.")
    return cls(**values)


def changed(tables: Sequence[Any], changes: Mapping[str, Any], where: str = "the tuning") -> list[Any]:
    """Dataclasses of ours with some fields changed, each in the first that has a field of that name.

    Raises:
        UserError: none has such a field (the nearest is named), or a value has the wrong type.
    """
    fields = [{entry.name: getattr(table, entry.name) for entry in dataclasses.fields(table)} for table in tables]
    mine: list[dict[str, Any]] = [{} for _ in tables]
    for name, value in changes.items():
        place = next((place for place, known in enumerate(fields) if name in known), None)
        if place is None:
            raise UserError(f"There is no setting {name!r}{suggestion(name, sorted(set().union(*fields)))}.")
        kind = type(fields[place][name])
        if kind is bool and value in (0, 1):
            value = bool(value)
        elif kind is tuple and not isinstance(value, (list, tuple)):
            value = [value]
        mine[place][name] = value
    return [from_dict(type(table), {**to_dict(table), **own}, where) for table, own in zip(tables, mine, strict=True)]


def to_json(document: Any, indent: int | None = None) -> str:
    """Plain values as JSON, in ASCII, which any terminal takes; numbers JSON has no word for become null."""
    return json.dumps(_finite(document), allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _meant(kinds: list[Any], value: Any, where: str) -> Any:
    """Of several dataclasses the one whose field ``kind`` says what the value's does; without one, the one without."""
    if len(kinds) == 1 or not isinstance(value, Mapping):
        return kinds[0]
    names = [get_args(get_type_hints(one).get("kind"))[:1] for one in kinds]  # the word of a Literal, or nothing
    own = (value["kind"],) if "kind" in value else ()
    if own not in names:
        known = [repr(name[0]) for name in names if name]
        raise UserError(f"{where} is of a kind {value['kind']!r} that this version of Vitrail does not know: {known}.")
    return kinds[names.index(own)]


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _typed(_meant([a for a in arguments if a is not type(None)], value, where), value, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} should be a list, not {value!r}.")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise UserError(f"{where} should have {len(inner)} entries, not {len(value)}.")
        return tuple(_typed(kind, item, where) for kind, item in zip(inner, value, strict=True))
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where} should be one of {', '.join(map(repr, arguments))}, not {value!r}.")
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = origin or hint
    if expected is Any or (isinstance(value, expected) and not (expected is int and isinstance(value, bool))):
        return value
    raise UserError(f"{where} should be {expected.__name__}, not {value!r}.")
