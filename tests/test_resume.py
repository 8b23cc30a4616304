"""Whatever ends a run, it goes on to the same weights, bit for bit; what cannot go on exactly is refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
import torch

import trainColorNetDUL_benchmark as training
from tests.training_helpers import ENVIRONMENT, SCRIPT, arguments, checkpoint, differing, make_data, records
from training.schedule import learning_rate
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.config import SHIPPED_MODEL
from utils.errors import UserError, run_script
from utils.files import claimed
from utils.signals import Stopped

pytestmark = pytest.mark.slow

EPOCHS, STEPS = 4, 12  # of the whole run: three batches of two clips an epoch


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("resume") / "data")


@pytest.fixture(scope="module")
def processes():
    """Fresh processes by the fork of one that has imported the training command and computed nothing."""
    before = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["trainColorNetDUL_benchmark", "tests.test_resume"])
    yield context
    os.environ.clear()
    os.environ.update(before)


def child(words, output, largest_file):
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(output, "a", buffering=1)  # noqa: SIM115 (closed by the end of the process)
    if largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    run_script(lambda: training.main(words))


class Trainer:
    """Starts runs of the training command in processes of their own."""

    def __init__(self, context, folder, data):
        self.context, self.folder, self.data = context, folder, data

    def start(self, *options, largest_file=0, **settings):
        words = arguments(self.folder, *options, data=self.data, TRAIN__NUM_EPOCHS=EPOCHS, TRAIN__SAVE_EVERY_STEPS=1,
                          TRAIN__EMA=0.9, **settings)
        process = self.context.Process(target=child, args=(words, self.folder / "output.txt", largest_file))
        process.start()
        return process

    def finish(self, *options, **settings):
        process = self.start(*options, **settings)
        process.join()
        return process.exitcode

    def kill_at(self, step, number, *options):
        """Send the signal once `step` is logged, at some moment of what follows."""
        process = self.start(*options)
        while process.is_alive() and (not (seen := records(self.folder)) or seen[-1]["step"] < step):
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.15))
        os.kill(process.pid, number)
        process.join()
        return process.exitcode

    @property
    def output(self):
        return (self.folder / "output.txt").read_text()


@pytest.fixture
def trainer(processes, tmp_path, data):
    return Trainer(processes, tmp_path, data)


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory, data):
    """An uninterrupted run."""
    whole = Trainer(processes, tmp_path_factory.mktemp("whole"), data)
    assert whole.finish() == 0, whole.output
    return whole


def assert_same_result(trainer, whole):
    for name in ("final.pth", "final_ema.pth"):
        assert differing(checkpoint(trainer.folder, name)["model"], checkpoint(whole.folder, name)["model"]) == []
    assert [record["step"] for record in records(trainer.folder)] == list(range(1, STEPS + 1))
    exact = ("step", "epoch", "loss/total", "loss/color", "loss/consistency", "loss/dense", "lr")
    curves = [[[record[key] for key in exact] for record in records(t.folder)] for t in (trainer, whole)]
    assert curves[0] == curves[1]


def test_ten_kills_at_random_points_change_nothing(trainer, whole):
    random.seed(7)
    killers = [signal.SIGKILL] * 7 + [signal.SIGTERM] * 2 + [signal.SIGINT]
    random.shuffle(killers)
    statuses = []
    for kill, number in enumerate(killers):
        options = ["--resume", "auto"] if kill else []
        statuses.append(trainer.kill_at(random.choice([kill // 2, kill // 2 + 1, kill]), number, *options))
    expected = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130}}
    assert all(status in expected[number] for status, number in zip(statuses, killers)), (statuses, killers)
    assert trainer.finish("--resume", "auto") == 0, trainer.output
    assert_same_result(trainer, whole)
    assert not list(trainer.folder.glob("snapshots/tiny/.*")), "what a kill left half-written is cleared away"


def test_a_signal_ends_the_step_saves_and_says_so(trainer, whole):
    assert trainer.kill_at(4, signal.SIGTERM) == 128 + signal.SIGTERM
    position = checkpoint(trainer.folder, "last.pth")["training"]["progress"]
    assert position["step"] >= 4 and f"SIGTERM after step {position['step']}" in trainer.output
    assert "--resume auto" in trainer.output and "Traceback" not in trainer.output
    assert trainer.finish("--resume", "auto") == 0
    assert_same_result(trainer, whole)


def test_a_signal_to_the_whole_process_group_spares_the_loader_processes(trainer):
    words = arguments(trainer.folder, data=trainer.data, TRAIN__NUM_WORKERS=1, TRAIN__NUM_EPOCHS=100)
    process = subprocess.Popen([sys.executable, SCRIPT, *words], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)
    while not records(trainer.folder):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)  # as a batch system does, and a terminal with Ctrl-C
    _, errors = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert checkpoint(trainer.folder, "last.pth")["training"]["progress"]["step"] > 0


def test_a_full_disk_leaves_the_old_checkpoint(trainer, whole):
    trainer.kill_at(3, signal.SIGTERM)
    folder = trainer.folder / "snapshots/tiny"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert trainer.finish("--resume", "auto", largest_file=1_000_000) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert "could not be written" in trainer.output and "free some space" in trainer.output
    assert "Traceback" not in trainer.output
    assert trainer.finish("--resume", "auto") == 0
    assert_same_result(trainer, whole)


def test_a_checkpoint_cut_short_is_passed_over(trainer, whole):
    trainer.kill_at(4, signal.SIGTERM)
    last = trainer.folder / "snapshots/tiny/last.pth"
    last.write_bytes(last.read_bytes()[:-5000])
    assert trainer.finish("--resume", "auto") == 0
    assert "last.pth is not a readable checkpoint" in trainer.output and "previous.pth" in trainer.output
    assert_same_result(trainer, whole)


def run(folder, data, *options, config=None, **settings):
    training.main(arguments(folder, *options, config=config, data=data, **settings))


def test_existing_experiments_and_other_configurations_are_refused(tmp_path, data, restored_process):
    run(tmp_path, data, TRAIN__NUM_EPOCHS=1)
    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for options, settings, words in [
            ([], {}, ["tiny exists", "--resume auto", "--exp"]),
            (["--resume", "auto"], {"MODEL__LR": 0.5}, ["MODEL.LR was 0.001 and is 0.5"]),
            (["--resume", "auto"], {"DATASET__STILLS_SHARE": 0.5}, ["DATASET.STILLS_SHARE was 0.0 and is 0.5"]),
            (["--resume", "auto", "--seed", 5], {}, ["seed was 777 and is 5"]),
            (["--resume", "auto", "--coco"], {}, ["coco was false and is true"]),
            (["--resume", "auto", "--init", "x.pth"], {}, ['init was null and is "x.pth"']),
            (["--resume", "auto", "--precision", "bf16"], {}, ["precision"])]:
        with pytest.raises(UserError) as refusal:
            run(tmp_path, data, *options, **({"TRAIN__NUM_EPOCHS": 1} | settings))
        assert all(word in str(refusal.value) for word in words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == written


@pytest.mark.parametrize("folder", ["snapshots/tiny", "logs/tiny"])
def test_one_run_at_a_time_trains_an_experiment(tmp_path, data, restored_process, folder):
    for options in ([], ["--resume", "auto"]):
        with claimed(tmp_path / folder), pytest.raises(UserError, match=f"one run at a time writes to .*{folder}"):
            run(tmp_path, data, *options)
    assert not (tmp_path / "snapshots").exists() and not (tmp_path / "logs").exists()


def test_a_folder_that_cannot_be_written_is_noticed_at_the_start(tmp_path, data, restored_process):
    (tmp_path / "snapshots").write_text("a file in the way")
    with pytest.raises(UserError, match="could not be written"):
        run(tmp_path, data)
    assert not (tmp_path / "logs").exists()


def test_an_epoch_is_saved_before_its_validation_which_a_signal_ends(tmp_path, data, restored_process):
    whole, parted, options = tmp_path / "whole", tmp_path / "parted", ["--validate", "filelists/val"]
    settings = {"TRAIN__NUM_EPOCHS": 2, "TRAIN__VALIDATE_EVERY": 1, "TRAIN__EMA": 0.5, "TEST__INFER_WH": [80, 64]}
    for folder in (whole, parted):
        folder.mkdir()
    run(whole, data, *options, **settings)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped, match="after step 3, saved in"):
        score = training.Validation.__call__
        patch.setattr(training.Validation, "__call__", lambda self: (
            signal.raise_signal(signal.SIGTERM) if records(parted) else score(self)))
        run(parted, data, *options, **settings)
    position = checkpoint(parted, "last.pth")["training"]["progress"]
    assert (position["epoch"], position["batch"]) == (1, 3) and checkpoint(parted, "epoch_001.pth")
    training.main(alone(parted))
    assert_same_models(parted, whole)
    validated = [[(record["step"], record["val/J&F"]) for record in records(folder, key="val/J&F")]
                 for folder in (parted, whole)]
    assert validated[0] == validated[1] and [step for step, _ in validated[0]] == [0, 3, 6]
    assert [record["step"] for record in records(parted)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_ended_before_its_first_step_leaves_only_its_validation_and_may_be_begun_anew(tmp_path, data,
                                                                                                 restored_process):
    settings = {"TRAIN__NUM_EPOCHS": 1, "TEST__INFER_WH": [80, 64]}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(training.TrainingStep, "__call__", lambda self, batch: 1 / 0)
        run(tmp_path, data, "--validate", "filelists/val", **settings)
    assert [record["step"] for record in records(tmp_path, key="val/J&F")] == [0] and not records(tmp_path)
    run(tmp_path, data, "--validate", "filelists/val", **settings)
    assert [record["step"] for record in records(tmp_path, key="val/J&F")] == [0, 3]


def test_what_the_weights_do_not_depend_on_may_change(tmp_path, data, restored_process):
    run(tmp_path, data, TRAIN__NUM_EPOCHS=1)
    moved = shutil.copytree(data, tmp_path / "moved")
    run(tmp_path, moved, "--resume", "auto", TRAIN__NUM_EPOCHS=1, LOG__ITER_TRAIN=5, TEST__KNN=3)


def test_resuming_without_any_whole_checkpoint_is_refused(tmp_path, data, restored_process):
    folder = tmp_path / "snapshots/tiny"
    folder.mkdir(parents=True)
    (folder / "last.pth").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"no checkpoint in .* is complete"):
        run(tmp_path, data, "--resume", "auto")


def alone(folder, *options, exp="tiny"):
    """The words that resume a run and say nothing of what it is."""
    return [str(word) for word in ("--exp", exp, "--snapshot-dir", folder / "snapshots", "--logdir", folder / "logs",
                                   "--resume", "auto", *options)]


@contextmanager
def broken_off(step, error):
    """Let a run in this process end when it logs `step`: by a signal, or an error as abrupt as a kill."""
    log = training.MetricLog.log

    def log_and_end(self, record, now):
        log(self, record, now)
        if now == step:
            signal.raise_signal(error) if isinstance(error, int) else (_ for _ in ()).throw(error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.MetricLog, "log", log_and_end)
        yield


def test_a_run_goes_on_with_no_other_option(tmp_path, data, restored_process):
    """Everything that it was started with is in its checkpoint; the data is clips and stills."""
    settings = {"TRAIN__NUM_EPOCHS": 2, "DATASET__STILLS": "JPEGImages/clip_0", "DATASET__STILLS_SHARE": 0.4,
                "TRAIN__BATCH_SIZE": 4,
                "TRAIN__EMA": 0.5, "MODEL__LR": 2e-3}
    options = ["--seed", 5, "--accumulate", 2]
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    for folder in (whole, interrupted):
        folder.mkdir()
    run(whole, data, *options, **settings)
    with broken_off(3, signal.SIGTERM), pytest.raises(Stopped, match="ended by SIGTERM after step 3, saved"):
        training.main(arguments(interrupted, *options, data=data, **settings))
    (interrupted / "config.json").unlink()
    training.main(alone(interrupted, "--set", "TRAIN.NUM_WORKERS", 2))
    assert_same_models(interrupted, whole)
    assert json.loads((interrupted / "logs/tiny/config.json").read_text())["seed"] == 5


def assert_same_models(a, b):
    for name in ("final.pth", "final_ema.pth"):
        assert differing(checkpoint(a, name)["model"], checkpoint(b, name)["model"]) == []


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path, data, restored_process):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    run(whole, data, TRAIN__NUM_EPOCHS=1, TRAIN__EMA=0.5)
    with broken_off(2, RuntimeError("killed")), pytest.raises(RuntimeError):
        run(killed, data, TRAIN__NUM_EPOCHS=1, TRAIN__EMA=0.5)
    with pytest.raises(UserError, match="tiny exists"):
        run(killed, data, TRAIN__NUM_EPOCHS=1, TRAIN__EMA=0.5)
    training.main(alone(killed))
    assert_same_models(killed, whole)
    assert [record["step"] for record in records(killed)] == [1, 2, 3]


def test_a_start_that_failed_is_no_run(tmp_path, data, restored_process):
    with pytest.raises(UserError, match="--accumulate"):
        run(tmp_path, data, "--accumulate", 3, TRAIN__NUM_EPOCHS=1)
    run(tmp_path, data, TRAIN__NUM_EPOCHS=1)


def test_a_run_that_is_not_there_is_not_begun(tmp_path, data, restored_process):
    run(tmp_path, data, TRAIN__NUM_EPOCHS=1)
    for exp, words in (("tyni", alone(tmp_path, exp="tyni")),
                       ("other", arguments(tmp_path, "--exp", "other", "--resume", "auto", data=data))):
        with pytest.raises(UserError, match=rf"{exp} holds none \(there are tiny\).*--exp"):
            training.main(words)
        assert not (tmp_path / "snapshots" / exp).exists() and not (tmp_path / "logs" / exp).exists()


def test_a_finished_run_is_prolonged_at_the_rates_of_the_longer_one(tmp_path, data, restored_process):
    run(tmp_path, data, TRAIN__NUM_EPOCHS=1)
    training.main(alone(tmp_path, "--set", "TRAIN.NUM_EPOCHS", 3))
    rates = [learning_rate(epoch, base=1e-3, epochs=length, cosine=True) for epoch, length in ((1, 1), (2, 3), (3, 3))]
    assert [record["lr"] for record in records(tmp_path)] == [rate for rate in rates for _ in range(3)]
    assert checkpoint(tmp_path)["provenance"]["averaged_epochs"] == [1, 2, 3]
    assert json.loads((tmp_path / "logs/tiny/config.json").read_text())["settings"]["TRAIN"]["NUM_EPOCHS"] == 3
    with pytest.raises(UserError, match=r"TRAIN\.NUM_EPOCHS was 3 and is 2"):
        training.main(alone(tmp_path, "--set", "TRAIN.NUM_EPOCHS", 2))


def test_a_checkpoint_from_before_an_option_existed_has_its_default(tmp_path, data, restored_process):
    run(tmp_path, data, TRAIN__NUM_EPOCHS=1)
    last = tmp_path / "snapshots/tiny/last.pth"
    contents = read_checkpoint(last)
    del contents["settings"]["DATASET"]["STILLS_SHARE"], contents["provenance"]["coco"], contents["provenance"]["init"]
    save_checkpoint(last, contents)
    training.main(alone(tmp_path, "--set", "TRAIN.NUM_EPOCHS", 2))
    with pytest.raises(UserError, match="coco was false and is true"):
        training.main(alone(tmp_path, "--coco"))


# --- weights to begin with ---

def test_a_run_begins_with_the_weights_of_a_file(tmp_path, data, restored_process):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    run(first, data, TRAIN__NUM_EPOCHS=1)
    model = first / "snapshots/tiny/final.pth"
    with broken_off(1, RuntimeError("killed")), pytest.raises(RuntimeError):
        run(second, data, "--init", model, "--seed", 5)
    start, given = checkpoint(second, "start.pth"), checkpoint(first)["model"]
    assert [name for name, tensor in given.items() if not torch.equal(start["model"][name], tensor)] == []
    assert start["training"]["progress"]["step"] == 0 and start["provenance"]["init"] == str(model)
    model.unlink()
    training.main(alone(second, "--init", model))  # the checkpoint's weights are those that count
    assert records(second)[-1]["step"] == 6


@pytest.mark.parametrize("config, settings, words", [
    ({"model_size": "M"}, {}, "size S with both heads.* size M"), ({"is_dul": False}, {}, "the local head alone"),
    ({"first_kernal_size": 7}, {}, "7x7"), ({}, {"MODEL__FEATURE_DIM": 64}, "64 channels")])
def test_weights_of_another_network_are_refused(tmp_path, data, restored_process, config, settings, words):
    with pytest.raises(UserError, match=words):
        run(tmp_path, data, "--init", SHIPPED_MODEL, config=config, **settings)
    assert not (tmp_path / "snapshots").exists()
