"""The first signal ends a run cleanly, the second one at once, with every process that it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from itertools import count

import pytest

from tests.training_helpers import ENVIRONMENT, SCRIPT, arguments, checkpoint, make_data, records
from utils import signals
from utils.iterators import each_within
from utils.signals import Stopped, StopRequest

pytestmark = pytest.mark.usefixtures("restored_process")


@pytest.fixture
def ended(monkeypatch):
    """The statuses with which the process would have ended at once."""
    statuses = []
    monkeypatch.setattr(signals, "end_now", statuses.append)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return statuses


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_raised_but_where_it_is_deferred(ended, number):
    stop = StopRequest()
    with pytest.raises(Stopped) as stopped:
        signal.raise_signal(number)
    assert stopped.value.number == stop.received == number
    stop = StopRequest()
    with stop.deferred():
        signal.raise_signal(number)
        assert stop.received == number
        with pytest.raises(Stopped), stop.at_once():
            pytest.fail("what came before is raised at its beginning")
    assert ended == []


def test_waiting_is_interrupted_and_what_is_done_between_is_not(ended):
    stop, done = StopRequest(), []

    def items():
        for number in count():
            if number == 2:
                signal.raise_signal(signal.SIGINT)  # while the loop waits for the third
            yield number

    with pytest.raises(Stopped), stop.deferred():
        for number in each_within(stop.at_once, items()):
            done.append(number)
    assert done == [0, 1]
    stop = StopRequest()
    with pytest.raises(Stopped), stop.deferred():
        for number in each_within(stop.at_once, count()):
            signal.raise_signal(signal.SIGINT)
            done.append(number)
    assert done == [0, 1, 0]


def test_the_second_signal_ends_at_once(ended, monkeypatch):
    stop = StopRequest()
    with stop.deferred():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert ended == [128 + signal.SIGTERM]
        ended.clear()
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
        signal.raise_signal(signal.SIGINT)  # torchrun passes on what the terminal has sent to all
        assert ended == []
        monkeypatch.setattr(signals, "ECHO", -1.0)
        signal.raise_signal(signal.SIGINT)
        assert ended == [128 + signal.SIGINT]


CHILDREN = """
import multiprocessing, signal, sys, time
from utils.errors import UserError, run_script

def deaf(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ready.set()
    time.sleep(600)

def main():
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=deaf, args=(ready,), daemon=True)
    child.start()
    ready.wait()
    print(child.pid, flush=True)
    {end}

run_script(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("end, status, words", [
    ("raise UserError('the rule')", 1, "error: the rule"), ("raise ZeroDivisionError('a bug')", 1, "Traceback"),
    ("raise KeyboardInterrupt", 130, "interrupted")])
def test_an_early_end_is_the_end_of_what_was_started(end, status, words):
    done = subprocess.run([sys.executable, "-c", CHILDREN.format(end=end)], env=ENVIRONMENT, capture_output=True,
                          text=True, timeout=120)
    assert done.returncode == status and words in done.stderr
    assert not os.path.exists(f"/proc/{int(done.stdout)}/exe"), "the child is gone, or a zombie until it is reaped"


BLOCKED = """
import os, runpy, sys
from datasets.clips import VideoClips
load, waiting, logged = VideoClips.load, os.pipe()[0], sys.argv[1]
VideoClips.load = lambda self, *args: os.read(waiting, 1) if os.path.exists(logged) else load(self, *args)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_training_ends_while_its_data_blocks_and_is_saved(tmp_path, workers):
    """From the second step on no frame comes any more, as from a dead mount."""
    words = arguments(tmp_path, data=make_data(tmp_path / "data"), TRAIN__NUM_WORKERS=workers, TRAIN__NUM_EPOCHS=100)
    logged = tmp_path / "logs/tiny/metrics.jsonl"  # from when on the data blocks
    process = subprocess.Popen([sys.executable, "-c", BLOCKED, logged, SCRIPT, *words], env=ENVIRONMENT,
                               stderr=subprocess.PIPE, text=True)
    deadline, seen = time.monotonic() + 90, -1
    while not seen or seen != len(records(tmp_path)):
        assert time.monotonic() < deadline, "the data does not block"
        seen = len(records(tmp_path))
        time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    step = records(tmp_path)[-1]["step"]
    assert f"ended by SIGINT after step {step}, saved in" in errors
    assert checkpoint(tmp_path, "last.pth")["training"]["progress"]["step"] == step
