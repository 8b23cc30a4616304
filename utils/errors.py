"""How a user's mistake ends: one line that names the rule, the value and the fix, and a status that is not 0."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from utils.signals import Stopped, end_now


class UserError(Exception):
    """A mistake of the user's. The message states the rule, the value that breaks it, and what to do."""


def require_packages(purpose: str, *names: str, requirements: str) -> None:
    """`UserError` where a package that a purpose needs is not installed; `requirements` is the file that names it."""
    missing = [name for name in names if not importlib.util.find_spec(name)]
    if missing:
        raise UserError(f"{purpose} needs {' and '.join(missing)}, which is not installed; "
                        f"pip install -r {requirements}")


def run_script(main: Callable[[], int | None]) -> None:
    """Call a script's `main` and exit with its status (None is 0); a `UserError` becomes one line and status 1.

    What a terminal cannot show of a name is written as its code. What ends the script early ends it within moments,
    with all processes that it has started.
    """
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        _tell_torchrun(f"error: {error}")
        end_now(1)
    except KeyboardInterrupt as interrupt:
        print(interrupt if isinstance(interrupt, Stopped) else "interrupted", file=sys.stderr)
        end_now(128 + getattr(interrupt, "number", signal.SIGINT))
    except BrokenPipeError:  # who read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        end_now(141)
    except Exception:
        traceback.print_exc()
        end_now(1)
    sys.exit(status or 0)


def _tell_torchrun(text: str) -> None:
    """Have torchrun, whose own trace follows ours, end its report with `text`."""
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:
        message = {"message": text, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(report).write_text(json.dumps({"message": message}), encoding="utf-8")
