"""How a user's mistake ends: one line that names the rule, the value and the fix, and a status that is not 0."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """A mistake of the user's. The message states the rule, the value that breaks it, and what to do."""


def run_script(main: Callable[[], int | None]) -> None:
    """Call a script's `main` and exit with its status (None is 0); a `UserError` becomes one line and status 1.

    What a terminal cannot show of a name is written as its code.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _tell_torchrun(f"error: {error}")
        status = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:  # who read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    sys.exit(status or 0)


def _tell_torchrun(text: str) -> None:
    """Have torchrun, whose own trace follows ours, end its report with `text`."""
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:
        message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(report).write_text(json.dumps({"message": message}), encoding="utf-8")
