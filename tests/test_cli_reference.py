"""docs/CLI.md says what the commands say, and README's links lead somewhere."""

from __future__ import annotations

import re

import pytest

from tools.cli_reference import REFERENCE, reference
from utils.config import REPOSITORY

DOCUMENTS = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "data").glob("*.md"),
             *(REPOSITORY / "data/weights").glob("*.md"), *(REPOSITORY / "filelists").glob("*.md")]


def test_the_reference_is_that_of_the_commands():
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "make docs writes it anew"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_links_lead_to_files(document):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text(encoding="utf-8"))
    gone = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert gone == []
