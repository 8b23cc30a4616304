"""Metrics: each step once, whatever ended the run before; a full disk is one line."""

from __future__ import annotations

import errno
import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import log as log_module
from training.log import MetricLog
from utils.errors import UserError


def lines(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()


def test_a_resumed_run_has_each_step_once_in_file_and_curves(tmp_path):
    with MetricLog(tmp_path, {"seed": 1}) as log:
        for step in range(1, 6):
            log.log({"loss": float(step)}, step)
        log.images({"picture": np.zeros((4, 6, 3), np.uint8)}, 5)
    with MetricLog(tmp_path, {"seed": 1}) as log:
        log.go_on_after(3, validated=True)
        for step in (4, 5):
            log.log({"loss": 10.0 * step}, step)
    assert [json.loads(line) for line in lines(tmp_path)] == [
        {"step": step, "loss": loss} for step, loss in ((1, 1), (2, 2), (3, 3), (4, 40), (5, 50))]
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss")] == [(1, 1), (2, 2), (3, 3), (4, 40), (5, 50)]
    assert [picture.step for picture in events.Images("picture")] == []


@pytest.mark.parametrize("validated, kept", [(True, [1, 2, 2]), (False, [1, 2])])
def test_a_validation_that_is_repeated_is_logged_once(tmp_path, validated, kept):
    with MetricLog(tmp_path, {}) as log:
        log.log({"loss": 1.0}, 1)
        log.log({"loss": 1.0}, 2)
        log.log({"epoch": 1, "val/J&F": 0.5}, 2)
        log.go_on_after(2, validated=validated)
    assert [json.loads(line)["step"] for line in lines(tmp_path)] == kept


def test_what_is_no_record_is_dropped(tmp_path):
    odd = ["", "{", "[1]", "7", "null", '{"loss": 1}', '{"step": "3"}', '{"step": [1]}', "[" * 100_000, '{"step": 3']
    (tmp_path / "metrics.jsonl").write_bytes("\n".join(['{"step": 1}', *odd]).encode() + b"\n\xff\xfe\n")
    MetricLog(tmp_path, {}).go_on_after(5, validated=True)
    assert lines(tmp_path) == ['{"step": 1}']


def test_an_end_while_records_are_dropped_leaves_them_all(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text("".join(f'{{"step": {step}}}\n' for step in range(5)))
    before = lines(tmp_path)

    def killed(line, step, validated):
        if b"3" in line:
            raise KeyboardInterrupt
        return True

    monkeypatch.setattr(log_module, "_stays", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricLog(tmp_path, {}).go_on_after(1, validated=True)
    assert lines(tmp_path) == before and [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("place", ["builtins.open", "training.events.EventFile._write"])
def test_a_full_disk_is_one_line(tmp_path, monkeypatch, place):
    log = MetricLog(tmp_path / "logs", {})
    log.log({"loss": 1.0}, 1)

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        with pytest.raises(UserError, match=r"logs could not be written: No space left on device; free some space"):
            log.log({"loss": 1.0}, 2)
