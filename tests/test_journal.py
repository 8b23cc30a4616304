"""What is noted of steps, and how seldom the device is waited for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from datasets import Batch
from datasets import loader as loader_module
from losses import build_objective
from losses.objective import Losses
from models.colornet import ColorNet
from tests.helpers import Waits
from tests.test_distributed import whole_batch
from tests.test_losses import config, small_batch
from training.failures import failures_in_words
from training.journal import LONGEST_UNREAD, Journal
from training.state import Progress, TrainingState
from training.step import TrainingStep
from utils.config import load_settings
from utils.errors import UserError


class Log(list):
    """Keeps records in place of files."""

    def log(self, record, step):
        self.append({"step": step, **record})


def make_state(model=None, learning_rate=1e-3):
    model = model or nn.Linear(1, 1, bias=False)
    return TrainingState(model, torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True),
                         torch.amp.GradScaler("cpu", enabled=False), None, {}, Progress())


def make_journal(state, log=None, every=1000, stop=None, batch_size=2, steps=100):
    return Journal(log if log is not None else Log(), state, stop or SimpleNamespace(received=None), log_every=every,
                   pictures=lambda batch: {}, pictures_every=0, batch_size=batch_size, steps=steps)


def note(journal, state, *totals, failed=0, clips=("dog", "cow")):
    for total in totals:
        state.progress.step += 1
        journal.note(Losses(*(torch.tensor(value) for value in (total, 1.0, 2.0, 3.0))), Batch({}, list(clips), failed))


def test_a_step_is_read_when_it_is_logged_or_many_are_unread(monkeypatch):
    monkeypatch.setattr("training.journal.STOPS_WITHIN", 1e9)
    state, log, reads = make_state(), Log(), []
    journal = make_journal(state, log, every=3)
    read = journal.read
    monkeypatch.setattr(journal, "read", lambda: reads.append(state.progress.step) or read())
    journal.longest_unread = LONGEST_UNREAD
    note(journal, state, *map(float, range(1, 8)))
    assert reads == [3, 6] and [record["step"] for record in log] == [3, 6]
    assert [record["loss/total"] for record in log] == [3.0, 6.0] and journal.last.total == 6.0
    journal = make_journal(state, every=1000)
    journal.longest_unread = LONGEST_UNREAD
    monkeypatch.setattr(journal, "read", lambda: reads.append(state.progress.step))
    note(journal, state, *[1.0] * LONGEST_UNREAD)
    assert reads[2:] == [7 + LONGEST_UNREAD]


def test_a_loss_that_is_no_number_is_found_with_its_own_step_and_clips():
    state = make_state()
    journal = make_journal(state)
    journal.longest_unread = LONGEST_UNREAD
    note(journal, state, 1.0)
    note(journal, state, float("nan"), clips=["cat", "hen"])
    note(journal, state, float("nan"))
    with pytest.raises(UserError, match=r"total is not at step 2 \(clips cat, hen\)"):
        journal.read()


def test_the_time_left_is_that_of_all_epochs_at_the_pace_of_the_steps_after_the_first(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("utils.timing.time", SimpleNamespace(perf_counter=lambda: now[0]))
    state, log = make_state(), Log()
    state.progress.step = 50  # of a run that goes on
    journal = make_journal(state, log, every=1, steps=60)
    for now[0] in (30.0, 32.0, 40.0):  # the first step waits for the loader to begin
        note(journal, state, 1.0)
    assert [record["time_left"] for record in log] == [30 * 9, 2 * 8, 5 * 7]


def test_failures_are_counted_and_a_signal_is_known_after_the_step():
    state, stop = make_state(), SimpleNamespace(received=None)
    journal = make_journal(state, stop=stop)
    journal.longest_unread = LONGEST_UNREAD
    note(journal, state, 1.0, 1.0, failed=1)
    assert state.progress.failed == 0 and state.progress.drawn == 4 and not journal.signalled
    stop.received = 15
    note(journal, state, 1.0)
    assert state.progress.failed == 2 and journal.signalled == 15


def test_steps_wait_for_no_device():
    """Network, losses, backward pass, optimiser, average and what is noted of them."""
    model = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=16).train()
    state = make_state(model)
    objective = build_objective(config(video_len=2), load_settings())
    step = TrainingStep(state, objective, precision="fp32", parts=1, seed=0)
    journal = make_journal(state)
    journal.longest_unread = LONGEST_UNREAD
    batch = Batch(small_batch(), ["a", "b"], 0)
    with Waits() as waits:
        for _ in range(2):
            losses = step(batch)
            state.progress.step += 1
            journal.note(losses, batch)
    assert waits.found == []
    with Waits() as waits:
        losses.total.item()
    assert waits.found == ["_local_scalar_dense"]


def test_the_objective_stays_on_a_gpu_and_waits_for_none():
    """On tensors that pretend to be there: a constant left on the CPU would be an error, one sent there a wait."""
    shapes = {branch: {name: value.shape for name, value in views.items()} for branch, views in whole_batch().items()}
    with FakeTensorMode():
        with torch.device("cuda", 1):
            model = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=16).train()
            views = {branch: {name: torch.empty(shape) for name, shape in named.items()}
                     for branch, named in shapes.items()}
        with Waits() as waits:
            losses = build_objective(config(), load_settings())(model, views, torch.Generator())
    assert {loss.device for loss in losses} == {torch.device("cuda", 1)} and losses.total.dtype == torch.float32
    assert waits.found == []


def test_views_are_finished_on_the_gpu():
    with FakeTensorMode(), Waits() as waits:
        empty = lambda *shape, dtype=torch.uint8: torch.empty(shape, dtype=dtype, device="cuda")
        made = loader_module.finished({"view_a": empty(2, 3, 3, 64, 64), "levels": empty(2, 3, 3, 64, 64),
                                       "values": empty(2, 3, 256, dtype=torch.float32),
                                       "contours": empty(2, 3, 32, 4)})
    assert {name: (value.device.type, tuple(value.shape)) for name, value in made.items()} == {
        "view_a": ("cuda", (2, 3, 3, 64, 64)), "target": ("cuda", (2, 3, 3, 64, 64)),
        "edge": ("cuda", (2, 3, 1, 64, 64))}
    assert waits.found == []


def test_a_batch_is_copied_before_the_one_before_it_is_taken(monkeypatch):
    events = []
    stream = SimpleNamespace(record_event=lambda: events.append("copied"),
                             wait_event=lambda event: events.append("wait"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(loader_module, "make_batch", lambda number, device: Batch({}, [number], 0))
    for batch in loader_module.copied_ahead(["a", "b", "c"], torch.device("cuda")):
        events.append(f"step {batch.clips[0]}")
    assert events == ["copied", "copied", "wait", "step a", "copied", "wait", "step b", "wait", "step c"]


@pytest.mark.parametrize("error, words", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "GPU's memory is used up; lower TRAIN.BATCH_SIZE"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"), "--ipc=host.*NUM_WORKERS"),
    (RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nunable to write to file </torch_1_2>: No"),
     "--ipc=host.*NUM_WORKERS"),
    (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "process was killed.*NUM_WORKERS"),
    (RuntimeError("[enforce fail at alloc_cpu] DefaultCPUAllocator: can't allocate memory"), "memory is used up"),
    (MemoryError(), "memory is used up"), (OSError(24, "Too many open files"), "ulimit -n"),
    (RuntimeError("received 0 items of ancdata"), "ulimit -n")], ids=str)
def test_what_the_machine_lacks_is_said_in_words(error, words):
    with pytest.raises(UserError, match=words) as raised, failures_in_words():
        raise error
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("color"),
                                   OSError(5, "Input/output error")], ids=str)
def test_a_fault_stays_what_it_is(error):
    with pytest.raises(type(error)) as raised, failures_in_words():
        raise error
    assert raised.value is error
