"""Plain values (dicts, lists, text, numbers) of files that others wrote: JSON, YAML and checkpoints."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

DEEPEST = 50  # containers in one another
MOST = 1_000_000  # values, each mention counted: a few aliases of aliases would name billions


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, with or without a byte order mark; OSError or ValueError where it is none."""
    return Path(path).read_text(encoding="utf-8-sig")


def parse_json(text: str) -> Any:
    """JSON of bounded depth and size in which no key stands twice; ValueError for anything else."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repetition)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    check_plain(value)
    return value


def parse_yaml(text: str) -> Any:
    """Like `parse_json`, for YAML: dates stay dates; merge keys (`<<`) are refused."""
    try:
        value = yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    check_plain(value)
    return value


def check_plain(value: Any) -> None:
    """ValueError for containers that hold themselves, or too deep or too many of them, and for numbers over 64 bits."""
    try:
        depth, count = _measure(value, {})
    except RecursionError:
        depth, count = math.inf, math.inf
    if depth > DEEPEST or count > MOST:
        raise ValueError(f"its values are nested over {DEEPEST} deep, more than {MOST}, or hold themselves")


def _measure(value: Any, known: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """Depth and number of the values in `value`; `known` has those of the containers that were measured already."""
    if isinstance(value, int) and not -2**63 <= value < 2**64:
        raise ValueError("a whole number in it has more than 64 bits")
    if not isinstance(value, (dict, list, tuple, set, frozenset)):
        return 0, 1
    if id(value) not in known:
        known[id(value)] = math.inf, math.inf  # met again before it is measured: it holds itself
        parts = [*value, *value.values()] if isinstance(value, dict) else [*value]
        measures = [_measure(part, known) for part in parts]
        known[id(value)] = 1 + max((depth for depth, _ in measures), default=0), 1 + sum(n for _, n in measures)
    return known[id(value)]


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_repetition([key for key, _ in pairs])
    return dict(pairs)


def _refuse_repetition(keys: list[str]) -> None:
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise ValueError(f"the key {twice[0]} stands there twice")


class _StrictLoader(yaml.SafeLoader):
    """YAML's plain values; what of two equal keys counts is not guessed."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if any(key.tag == "tag:yaml.org,2002:merge" for key in keys):
            raise ValueError("merge keys (<<) are not taken; write the values out")
        _refuse_repetition([key.value for key in keys])
        return super().construct_mapping(node, deep)
