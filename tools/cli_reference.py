"""Write docs/CLI.md, every option of every command, from the commands themselves.

    python tools/cli_reference.py
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from utils.config import REPOSITORY
from utils.errors import run_script
from utils.files import write_text

REFERENCE = REPOSITORY / "docs/CLI.md"
COMMANDS = ("trainColorNetDUL_benchmark", "infer_vos_dul", "evaluation_method", "tools.annotate", "tools.export",
            "tools.prepare_data", "tools.demo", "tools.select_checkpoint", "tools.publish_model", "tools.plot_curves",
            "tools.export_submission", "tools.export_onnx")
INTRODUCTION = """# Commands and their options

Made from the commands by `make docs`; a test compares. `--help` prints the same. Keys of `--set` and of the training
config: `python -m utils.config`.
"""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser that a command builds; nothing else of the command runs."""
    with mock.patch.object(argparse.ArgumentParser, "parse_args", autospec=True, side_effect=SystemExit) as parse, \
            suppress(SystemExit):
        importlib.import_module(command).main([])
    return parse.call_args.args[0]


def section(command: str) -> str:
    """A command's heading, its description and a table of its options."""
    parser = parser_of(command)
    first, _, rest = (parser.description or "").strip().partition("\n\n")
    text = f"## {command.replace('.', '/')}.py\n{first}\n```\n{rest}\n```\n"
    return text + "\n| option | default | meaning |\n|---|---|---|\n" + "\n".join(rows(parser)) + "\n"


def rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    """A table's row for each option."""
    for action in parser._actions:  # argparse has no public way to list them
        if action.dest in ("help", "version"):
            continue
        names = ", ".join(f"`{word}`" for word in action.option_strings) or f"`{action.metavar or action.dest}`"
        value = action.metavar or ("{" + ",".join(map(str, action.choices)) + "}" if action.choices else "")
        if not action.option_strings:
            value = ""
        plain = action.default in (None, False, []) or action.default is argparse.SUPPRESS
        cells = (f"{names} {' '.join(value) if isinstance(value, tuple) else value}".strip(),
                 "" if plain else f"`{relative(action.default)}`",
                 (action.help or "") % {**vars(action), "prog": parser.prog, "default": relative(action.default)})
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def relative(value: object) -> object:
    """A path below the repository as users type it; anything else as it is."""
    return value.relative_to(REPOSITORY) if isinstance(value, Path) and value.is_relative_to(REPOSITORY) else value


def reference() -> str:
    """All of docs/CLI.md."""
    return "\n".join([INTRODUCTION, *map(section, COMMANDS)])


if __name__ == "__main__":
    run_script(lambda: write_text(REFERENCE, reference()))
