"""Which files a run keeps, what they hold, and which of them is the better one."""

from __future__ import annotations

import copy

import cv2
import numpy as np
import pytest
import torch

from datasets.synthetic import write_video
from tests.helpers import golden_model
from tools import select_checkpoint
from training.averages import RunningAverage
from training.snapshots import Snapshots
from training.state import Progress, TrainingState
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.config import load_train_config, resolved
from utils.errors import UserError


def training(step):
    """The part of a checkpoint that is resumed, after `step` steps."""
    return {"optimiser": {"state": {}}, "scaler": {}, "average": None, "progress": {"epoch": 1, "step": step}}


def contents(value, **more):
    return {"model": {"weight": torch.full((2,), float(value)), "bn.num_batches_tracked": torch.tensor(3)},
            "train_config": {}, "settings": {}, "provenance": {}, **more}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_twentieth_and_the_last_ten_epochs_are_kept_and_averaged(tmp_path):
    snapshots = Snapshots(tmp_path)
    for epoch in range(1, 46):
        snapshots.save_epoch(contents(epoch), epoch, epochs=45)
    assert names(tmp_path) == [f"epoch_{epoch:03d}.pth" for epoch in (20, *range(36, 46))]
    snapshots.save_final(contents(0), epochs=45)
    final = read_checkpoint(tmp_path / "final.pth")
    assert final["model"].keys() == {"weight"} and final["model"]["weight"].tolist() == [40.5, 40.5]
    assert final["provenance"]["averaged_epochs"] == list(range(36, 46))


def test_a_run_shorter_than_the_average_uses_all_epochs(tmp_path):
    for epoch in (1, 2):
        Snapshots(tmp_path).save_epoch(contents(epoch), epoch, epochs=2)
    Snapshots(tmp_path).save_final(contents(0), epochs=2)
    assert read_checkpoint(tmp_path / "final.pth")["model"]["weight"].tolist() == [1.5, 1.5]


@pytest.mark.parametrize("keep, kept", [(2, ["best_0.5000_epoch_003.pth", "best_0.7000_epoch_002.pth"]), (0, [])])
def test_the_best_are_kept(tmp_path, keep, kept):
    for epoch, score in ((1, 0.3), (2, 0.7), (3, 0.5), (4, 0.4)):
        Snapshots(tmp_path).save_best(contents(epoch), epoch, score, keep)
    assert names(tmp_path) == kept


def test_the_newest_whole_checkpoint_is_found(tmp_path):
    snapshots = Snapshots(tmp_path)
    assert snapshots.newest() is None and not snapshots.exist()
    for step in (1, 2, 3):
        snapshots.save_last(contents(step, training=training(step)))
    assert names(tmp_path) == ["last.pth", "previous.pth"] and snapshots.newest()["training"] == training(3)
    (tmp_path / "last.pth").rename(tmp_path / "fresh.pth")  # killed between the two renames
    assert snapshots.newest()["training"] == training(3)
    (tmp_path / "fresh.pth").write_bytes(b"")
    assert snapshots.newest()["training"] == training(2)


@pytest.mark.parametrize("change", [
    {"training": 3}, {"training": {}}, {"provenance": "x"}, {"settings": {"TRAIN": 3}}, {"train_config": None},
    {"training": training(2) | {"progress": {"epoch": 0}}}, {"training": training(2) | {"progress": {"lap": 2}}},
    {"training": training(2) | {"progress": {"step": "2"}}}, {"training": training(2) | {"optimiser": [1]}}], ids=str)
def test_what_cannot_be_resumed_is_passed_over_with_a_word(tmp_path, caplog, change):
    snapshots = Snapshots(tmp_path)
    for step in (1, 2):
        snapshots.save_last(contents(step, training=training(step)) | (change if step == 2 else {}))
    assert snapshots.newest()["training"] == training(1)
    assert "last.pth: it cannot be resumed" in caplog.text and "trying the one before" in caplog.text


def test_a_flipped_bit_is_noticed(tmp_path, caplog):
    snapshots = Snapshots(tmp_path)
    for step in (1, 2):
        snapshots.save_last(contents(step, training=training(step)))
    damaged = bytearray((tmp_path / "last.pth").read_bytes())
    damaged[damaged.index(np.full(2, 2, np.float32).tobytes())] ^= 1
    (tmp_path / "last.pth").write_bytes(damaged)
    assert snapshots.newest()["training"] == training(1) and "last.pth" in caplog.text and "checksum" in caplog.text


def test_a_missing_epoch_says_how_to_finish(tmp_path):
    for epoch in range(1, 13):
        Snapshots(tmp_path).save_epoch(contents(epoch), epoch, epochs=12)
    (tmp_path / "epoch_005.pth").unlink()
    with pytest.raises(UserError, match=r"lacks epoch_005\.pth.*--resume auto --set TRAIN\.NUM_EPOCHS 22"):
        Snapshots(tmp_path).save_final(contents(0), epochs=12)
    assert not (tmp_path / "final.pth").exists()


def trained(seed=0, average=True):
    torch.manual_seed(seed)
    model = torch.nn.Linear(2, 1)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    return TrainingState(model, optimiser, torch.amp.GradScaler("cpu", enabled=False),
                         RunningAverage(model, 0.5) if average else None,
                         {"train_config": {}, "settings": {}}, Progress(step=1))


@pytest.mark.parametrize("change", [
    lambda saved: saved["model"].pop("bias"), lambda saved: saved["model"].update(weight=torch.ones(3, 2)),
    lambda saved: saved["training"]["optimiser"].update(state={7: {}}),
    lambda saved: saved["training"]["optimiser"]["state"][0].update(exp_avg=torch.ones(5)),
    lambda saved: saved["training"]["optimiser"]["state"][0].update(exp_avg=torch.full((1, 2), torch.nan)),
    lambda saved: saved["training"]["optimiser"]["state"][0].pop("step"),
    lambda saved: saved["training"]["optimiser"]["state"].update({0: 3}),
    lambda saved: saved["training"].update(average=None), lambda saved: saved["training"]["average"].clear(),
    lambda saved: saved["training"]["average"].update(bias=torch.ones(3)),
    lambda saved: saved["training"]["average"].update(bias=torch.full((1,), torch.inf))])
def test_what_does_not_fit_the_run_ends_in_one_line(change):
    saved = copy.deepcopy(trained().resumable_contents())
    change(saved)
    with pytest.raises(UserError, match="does not fit this run"):
        trained(seed=1).restore(saved)


def test_what_fits_is_taken_up_and_hyperparameters_are_the_runs():
    saved, other = trained().resumable_contents(), trained(seed=1)
    saved["training"]["optimiser"]["param_groups"] = [{"lr": 1e9}]
    other.restore(saved)
    assert torch.equal(other.model.weight, saved["model"]["weight"]) and other.progress.step == 1
    assert other.optimiser.param_groups[0]["lr"] == 1e-3
    gathered = other.optimiser.state_dict()["state"][0]
    assert torch.equal(gathered["exp_avg"], saved["training"]["optimiser"]["state"][0]["exp_avg"])


def test_running_average_by_hand():
    model = torch.nn.BatchNorm1d(1)
    average = RunningAverage(model, decay=0.75)
    torch.nn.init.constant_(model.weight, 5.0)
    average.update(model)
    assert average.state["weight"].item() == 0.75 * 1 + 0.25 * 5
    assert "num_batches_tracked" not in average.state
    average.update(model)
    assert average.state["weight"].item() == 0.75 * 2 + 0.25 * 5
    other = RunningAverage(torch.nn.BatchNorm1d(1), decay=0.75)
    other.load(average.state)
    assert other.state["weight"].item() == 2.75


def write_model(path, temperature):
    model = golden_model(has_global=False, feature_dim=16)
    config = resolved(load_train_config()) | {"model_size": "S", "is_dul": False, "TEMP": temperature}
    save_checkpoint(path, {"model": model.state_dict(), "train_config": config})


@pytest.fixture
def striped_video(tmp_path):
    """Frames that do not change: what tells cells apart rebuilds them well."""
    rng = np.random.default_rng(0)
    frame = cv2.resize(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8), (96, 64), interpolation=cv2.INTER_NEAREST)
    write_video(tmp_path / "videos/still", np.stack([frame] * 6))
    return tmp_path / "videos"


def test_checkpoints_are_ranked_by_rebuilt_colors(tmp_path, striped_video, capsys):
    folder = tmp_path / "snapshots"
    write_model(folder / "epoch_001.pth", 0.01)  # looks everywhere alike: rebuilds the mean colour
    write_model(folder / "epoch_002.pth", 500)
    save_checkpoint(folder / "last.pth", contents(0))  # not a model to choose
    select_checkpoint.main([str(folder), "--frames", str(striped_video), "--gaps", "2", "4", "--size", "96", "64"])
    header, *rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert header[1:5] == ["2", "frames", "4", "frames"]
    assert [row[0] for row in rows] == ["epoch_002.pth", "epoch_001.pth"]
    good, bad = ([float(value) for value in row[1:]] for row in rows)
    assert good[2] == pytest.approx(np.mean(good[:2]), abs=2e-3) and good[2] < 0.3 * bad[2]


@pytest.mark.parametrize("words, message", [
    (["--gaps", "6"], "more than 6 frames"), (["--size", "90", "64"], "multiples of 8"),
    (["--frames", "none"], "none")])
def test_selection_refuses(tmp_path, striped_video, words, message):
    write_model(tmp_path / "snapshots/epoch_001.pth", 25)
    with pytest.raises(UserError, match=message):
        select_checkpoint.main([str(tmp_path / "snapshots"), "--frames", str(striped_video), *words])


def test_selection_needs_checkpoints(tmp_path, striped_video):
    with pytest.raises(UserError, match="holds no epoch_NNN"):
        select_checkpoint.main([str(tmp_path), "--frames", str(striped_video)])
