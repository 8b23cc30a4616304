"""Curves from metrics.jsonl: what is drawn, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tools import plot_curves
from utils.errors import UserError


def write_run(folder, records):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def losses(count):
    return [{"step": 10 * i, "loss/color": float(i), "loss/consistency": 1.0, "loss/dense": 2.0}
            for i in range(1, count + 1)]


def test_losses_are_running_means_and_validations_stay_as_they_are(tmp_path):
    run = write_run(tmp_path / "run", [*losses(30), {"step": 300, "val/J&F": 0.5, "val/J": 0.4, "val/F": 0.6}])
    curves = plot_curves.read_curves(run)
    steps, values = curves["loss/color"]
    assert steps[0] == 30 and steps[-1] == 300, "a tenth of 30 records is 3"
    np.testing.assert_allclose(values, np.arange(2, 30), err_msg="the mean of three that follow one another")
    np.testing.assert_allclose(curves["val/J&F"], [[300], [0.5]])


def test_one_picture_of_all_runs(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", losses(3)), write_run(tmp_path / "b", [*losses(3), {"step": 30, "val/J&F": 0.5}])]
    plot_curves.main([*map(str, runs), "--out", str(tmp_path / "curves.png")])
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "2 runs" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "curves.png"]


def test_a_run_of_one_record_is_seen_and_equal_names_are_told_apart(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    runs = [write_run(tmp_path / "first/run", losses(1)), write_run(tmp_path / "second/run", losses(3))]
    svg = tmp_path / "curves.svg"
    plot_curves.main([*map(str, runs), "--out", str(svg)])
    text = svg.read_text()
    assert text.startswith("<?xml") and "<!-- first -->" in text and "<!-- second -->" in text
    one = text[text.index('id="line2d_'):]
    assert one.count("#1f77b4") >= 3, "a dot of the first colour in each panel"
    with pytest.raises(UserError, match=r"curves\.svg exists"):
        plot_curves.main([*map(str, runs), "--out", str(svg)])
    plot_curves.main([str(runs[0]), "--out", str(svg), "--overwrite"])


@pytest.mark.parametrize("line", ["[1]", "3", '{"loss/color": 1}', '{"step": "x", "loss/color": 1}',
                                  '{"step": 1, "loss/color": null}', '{"step": 1, "step": 2}', "9" * 5000])
def test_lines_that_are_no_records_are_named(tmp_path, line):
    run = write_run(tmp_path / "run", losses(2))
    with open(run / "metrics.jsonl", "a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match="line 3 is none"):
        plot_curves.read_curves(run)


def test_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        plot_curves.read_curves(tmp_path / "none")
    with pytest.raises(UserError, match="no losses and no validation"):
        plot_curves.read_curves(write_run(tmp_path / "empty", [{"step": 1, "lr": 1e-4}]))
    broken = write_run(tmp_path / "broken", losses(2))
    (broken / "metrics.jsonl").write_text("{\n")
    with pytest.raises(UserError, match="JSON record"):
        plot_curves.read_curves(broken)
