"""How values of configuration files and of `--set` become what a dataclass declares, and what is said of wrong ones."""

from __future__ import annotations

import functools
import json
import math
import re
import shlex
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.values import parse_json, parse_yaml, read_text


def read_values(path: Path, language: str, *, name: str, option: str) -> Any:
    """What a file of "JSON" or "YAML" holds; `UserError`, with its `name` and the `option` that gave it, for others."""
    try:
        return (parse_json if language == "JSON" else parse_yaml)(read_text(path))
    except OSError as error:
        raise UserError(f"{name} {path} cannot be read ({error.strerror}); check {option}") from error
    except ValueError as error:
        raise UserError(f"{name} {path} is not {language}: {error}; correct the file") from error


def flatten(values: Any, origin: str) -> dict[str, Any]:
    """{"TEST": {"KNN": 10}} to {"TEST.KNN": 10}."""
    if not isinstance(values, dict) or not all(isinstance(v, dict) for v in values.values()):
        raise UserError(f"settings are sections of keys (DATASET: ROOT: ...); {origin} has a value outside a section")
    return {f"{section}.{key}": value for section, keys in values.items() for key, value in keys.items()}


def parse_pairs(words: Sequence[str], types: Mapping[str, Any]) -> dict[str, Any]:
    """The words of `--set`, alternately key and value. Text is taken as it stands, the rest is read as YAML."""
    pairs: dict[str, Any] = {}
    for i, (key, text) in enumerate(zip(words[::2], [*words[1::2], None])):
        if key not in types and not re.fullmatch(r"[A-Z]+\.\w+", key):
            _refuse_word(words, 2 * i, types)
        if text is None:
            raise UserError(f"--set takes pairs of key and value; the value of {key} is missing")
        try:
            value = text if types.get(key) is str else parse_yaml(text)
        except ValueError:
            value = text
        if key in pairs and pairs[key] != value:
            raise UserError(f"--set gives {key} twice: {pairs[key]} and {value}; give it once")
        pairs[key] = value
    return pairs


def _refuse_word(words: Sequence[str], position: int, types: Mapping[str, Any]) -> typing.NoReturn:
    """Say how a value of several words is written: `words[position]` stands where a key should."""
    message = f"--set takes pairs of key and value, and {shown(words[position])} stands where a key should"
    if not position:
        raise UserError(f"{message}; python -m utils.config lists every key")
    key, end = words[position - 2], position
    while end < len(words) and words[end] not in types:
        end += 1
    value = words[position - 1:end]
    written = f"[{', '.join(value)}]" if typing.get_origin(types.get(key)) is tuple else " ".join(value)
    raise UserError(f"{message}; a value is one word: --set {key} {shlex.quote(written)}")


@functools.cache
def type_hints(cls: type) -> Mapping[str, Any]:
    """The fields of a dataclass with their types, which the standard library evaluates anew at every call."""
    return typing.get_type_hints(cls)


def build(cls: type, values: Mapping[str, Any], origin: str, prefix: str) -> Any:
    """Fill the dataclass `cls` from `values`, refusing unknown and missing keys, wrong types and forbidden values."""
    known = {f.name: f for f in fields(cls)}
    unknown, missing = sorted(map(str, set(values) - set(known))), sorted(set(known) - set(values))
    if unknown or missing:
        raise UserError(f"{origin}: " + "; ".join(
            [f"unknown key {prefix}{key}" for key in unknown] + [f"key {prefix}{key} is missing" for key in missing])
            + f"; the keys are {', '.join(known)}")
    hints, checked = type_hints(cls), {}
    for name, value in values.items():
        metadata = known[name].metadata
        try:
            checked[name] = _coerce(value, hints[name])
            valid = metadata["valid"](checked[name])
        except (TypeError, ValueError, OverflowError):
            valid = False
        if not valid:
            raise UserError(f"{origin}: {prefix}{name} must be {_type_name(hints[name])}, {metadata['allowed']}; "
                            f"it is {shown(value)}")
    return cls(**checked)


def _coerce(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; TypeError or ValueError where that would change what it says."""
    if typing.get_origin(hint) is tuple:
        parts = typing.get_args(hint)
        if not isinstance(value, (list, tuple)) or len(value) != len(parts):
            raise TypeError
        return tuple(_coerce(v, part) for v, part in zip(value, parts))
    if hint is float and type(value) in (float, int, str):
        number = float(value)  # YAML 1.1 reads 1e-4 as text
        if not math.isfinite(number):
            raise ValueError
        return number
    if type(value) is not hint:
        raise TypeError
    return value


def shown(value: Any) -> str:
    """A value as its file has it, in a few words."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]} ..."


def _type_name(hint: Any) -> str:
    names = {bool: "a boolean", int: "a whole number", float: "a number", str: "text"}
    return names.get(hint) or f"a list of {len(typing.get_args(hint))} values"
