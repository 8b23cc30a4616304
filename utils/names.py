"""Names that become files: which are taken, and how several are told apart in few words."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

LONGEST_NAME = 200  # bytes: file systems take 255, and suffixes are added
NAME_RULE = f"a name of at most {LONGEST_NAME} bytes without / \\ and control characters that does not begin with a dot"


def is_name(text: object) -> bool:
    """Whether `text` follows `NAME_RULE`, so that `folder / text` lies in `folder` and can be seen there."""
    return (isinstance(text, str) and bool(text.strip()) and not text.startswith(".")
            and not any(c in "/\\\x7f" or c < " " for c in text)
            and len(text.encode("utf-8", "surrogatepass")) <= LONGEST_NAME)


def told_apart(paths: Sequence[str | Path]) -> list[str]:
    """What tells paths apart: without the leading and trailing words (between / _ - and blanks) that all have.

    A single path keeps its last part.
    """
    names = [os.path.abspath(path) for path in paths]
    if len(set(names)) < 2:
        return [os.path.basename(name) for name in names]
    words = [re.split(r"([/_\- ])", name) for name in names]  # words and what parts them, in turn
    shortest = min(map(len, words))
    start = min(len(os.path.commonprefix(words)), shortest - 1) // 2 * 2
    end = min(len(os.path.commonprefix([part[::-1] for part in words])), shortest - start - 1) // 2 * 2
    return ["".join(part[start:len(part) - end]) for part in words]
