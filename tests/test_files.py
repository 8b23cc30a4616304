"""Files that are whole or not there, and folders that one run at a time writes to."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import sys
import time

import pytest

from utils.errors import UserError
from utils.files import claimed, replacing, sync_files


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "deep/a.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("new")
        raise ZeroDivisionError
    assert path.read_text() == "old" and [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_temporary_names_cannot_be_guessed_and_links_are_not_followed(tmp_path, monkeypatch):
    names = set()
    for _ in range(2):
        with replacing(tmp_path / "a.txt") as temporary:
            names.add(temporary.name)
    assert len(names) == 2
    monkeypatch.setattr("secrets.token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f".{'0' * 16}.part.txt").symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match=r"a\.txt could not be written"), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("x")
    assert not (tmp_path / "victim").exists()


def test_a_full_disk_and_a_file_that_cannot_be_read_are_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"a\.txt could not be written: No space left.*free some space"), \
            replacing(tmp_path / "a.txt"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(UserError) as raised, replacing(tmp_path / "a.txt"):
        (tmp_path / "source.txt").read_text()
    assert "source.txt: No such file" in str(raised.value) and "space" not in str(raised.value)
    with pytest.raises(UserError, match=r"a\.txt could not be written"), replacing(tmp_path / "a.txt") as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", f"file:{temporary}")  # as the encoder of videos says it
    with pytest.raises(UserError, match="shorter name"), replacing(tmp_path / ("a" * 300)):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/a could not be written"), replacing(tmp_path / "file/a"):
        pass


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_is_synced_unless_many_are_synced_at_once(tmp_path, monkeypatch, sync):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with replacing(tmp_path / "a.txt", sync=sync) as temporary:
        temporary.write_text("x")
    assert len(synced) == sync and (tmp_path / "a.txt").read_text() == "x"
    sync_files(tmp_path)


def test_one_run_at_a_time_holds_a_folder(tmp_path):
    with claimed(tmp_path / "out"):
        with pytest.raises(UserError, match=r"one run at a time writes to .*out"), claimed(tmp_path / "out"):
            pass
        with claimed(tmp_path / "other"):
            pass
    assert list(tmp_path.iterdir()) == [], "what was made and left empty goes"
    with claimed(tmp_path / "deep/out"):
        (tmp_path / "deep/out/a").touch()
    assert [path.name for path in (tmp_path / "deep/out").iterdir()] == ["a"]


def test_a_forked_process_does_not_hold_the_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    with claimed(tmp_path):
        child = context.Process(target=time.sleep, args=(60,))
        child.start()
    with claimed(tmp_path):
        child.kill()
        child.join()


CLAIM = "import sys; from utils.files import claimed\n" \
        "with claimed(sys.argv[1]): print('in', flush=True); sys.stdin.read()"


def claiming(folder, **environment) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", CLAIM, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def test_processes_of_one_run_share_a_claim_and_a_killed_one_gives_it_back(tmp_path):
    shared = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "a", "MASTER_PORT": "1"}
    processes = [claiming(tmp_path, **shared) for _ in range(2)]
    assert [process.stdout.readline() for process in processes] == ["in\n", "in\n"]
    for _ in range(2):
        with pytest.raises(UserError, match="one run"), claimed(tmp_path):
            pass
        processes[0].kill()
        processes[0].wait()
    processes[1].kill()
    processes[1].wait()
    with claimed(tmp_path):
        pass


def test_what_dead_processes_left_half_written_goes_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in (".hidden.png", "a.part.png", ".abc.part.png")]
    for file in [*kept, tmp_path / "deep" / f".{'0f' * 8}.part.png", tmp_path / f".{'0f' * 8}.part"]:
        file.parent.mkdir(exist_ok=True)
        file.write_text("")
    with claimed(tmp_path / "deep", also=[tmp_path]):
        pass
    assert sorted(file for file in tmp_path.rglob("*") if file.is_file()) == sorted(kept)
