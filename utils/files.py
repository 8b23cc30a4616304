"""Files that are either whole or not there, and folders that one run at a time writes to."""

from __future__ import annotations

import csv
import ctypes
import errno
import fcntl
import io
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from utils.errors import UserError

TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.part(\..*)?")  # what `replacing` calls its files
REMEDIES = {errno.ENOSPC: "free some space", errno.EDQUOT: "free some space",
            errno.ENAMETOOLONG: "choose a shorter name"}
CLAIM_TRIES = 20  # two runs that start at once disturb each other's locks for a moment
LOCK = ".lock"

logger = logging.getLogger(__name__)


@contextmanager
def replacing(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a new, empty file beside `path`; when the block ends well, it is renamed to `path`.

    A block that fails, and a full disk, leave what was at `path` as it was and no temporary file behind. The file's
    name cannot be guessed and is no link. With `sync` it is on the disk before it is renamed; leave that out for one of
    many files and call `sync_files` after the last.

    Raises:
        UserError: for every `OSError` of the block; it names the file that was written, or another one that failed.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            if sync:
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _as_user_error(error, path, temporary) from error


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all (`replacing`); what of a file's name is no text stands as its code."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Write a table as CSV, likewise."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def refuse_existing(path: str | Path, overwrite: bool) -> None:
    """`UserError` where something is at `path` and `--overwrite` is not given."""
    if os.path.lexists(path) and not overwrite:
        raise UserError(f"{path} exists and is not overwritten unasked; give --overwrite or another name")


def _as_user_error(error: OSError, path: Path, temporary: Path) -> UserError:
    reason = error.strerror or error
    failed = path if error.filename is None else Path(os.fsdecode(error.filename).removeprefix("file:"))
    if failed not in (path, *path.parents) and temporary not in (failed, *failed.parents):
        return UserError(f"{error.filename}: {reason}; it is needed for {path}; check that file")
    remedy = REMEDIES.get(error.errno or 0, "free some space or choose a folder you may write to")
    return UserError(f"{path} could not be written: {reason}; {remedy}")


def sync_files(folder: str | Path) -> None:
    """Wait until everything that was written to the file system of `folder` is on its disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor):
            raise UserError(f"the files in {folder} could not be written: {os.strerror(ctypes.get_errno())}; "
                            "check the disk")
    finally:
        os.close(descriptor)


@contextmanager
def claimed(folder: str | Path, *, also: Sequence[Path] = ()) -> Iterator[None]:
    """Hold `folder`, which is made where it is not there, for this run until the block ends or the process does.

    It goes again where it was made and nothing was written. The processes that torchrun started share one claim.
    Half-written files that a dead process left there, and in the folders `also`, are removed, however deep.

    Raises:
        UserError: another run holds the folder.
    """
    folder, token = Path(folder), _run_token()
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(folder, token, [folder, *also])
    except OSError as error:
        raise _as_user_error(error, folder / LOCK, folder) from error
    _held.add(lock)
    try:
        yield
    finally:
        with suppress(OSError):  # another process of this run still works here
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (folder / LOCK).unlink(missing_ok=True)
        _held.discard(lock)
        os.close(lock)
        with suppress(OSError):  # something was written
            for place in made:
                place.rmdir()


def _leave_locks() -> None:
    """In a forked process: it may live on for a while, and the run is not its."""
    for lock in _held:
        os.close(lock)


_held: set[int] = set()  # descriptors of the locks of this process
os.register_at_fork(after_in_child=_leave_locks)


def _take_lock(folder: Path, token: str, cleaned: Sequence[Path]) -> int:
    """A descriptor that shares the lock of `folder` with processes of the same token alone."""
    for _ in range(CLAIM_TRIES):
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            logger.warning("%s cannot be locked (%s): see to it that no other run writes there", folder, error.strerror)
            return lock
        else:  # nobody is here
            os.ftruncate(lock, 0)
            os.pwrite(lock, token.encode(), 0)
            for place in cleaned:
                _remove_leftovers(place)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.pread(lock, len(token) + 1, 0) == token.encode() and _is_at(lock, folder / LOCK):
                return lock
        except BlockingIOError:
            pass
        os.close(lock)
        time.sleep(0.02)
    raise UserError(f"one run at a time writes to {folder}, and another one does now; wait for its end or choose "
                    "another folder")


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still what `path` names: its last holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _run_token() -> str:
    """What the processes of one run have in common, and no other run has."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return " ".join(os.environ.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT"))
    return secrets.token_hex(16)


def _remove_leftovers(top: Path) -> None:
    for folder, _, names in os.walk(top):
        for name in names:
            if TEMPORARY.fullmatch(name):
                Path(folder, name).unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`, which must not exist; when the block ends well, rename it to `path`.

    Its name cannot be guessed, so that two runs do not write to one.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(path)
    except OSError as error:
        raise _as_user_error(error, path, temporary) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
