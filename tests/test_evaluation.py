"""The evaluation command and its protocol: on any folder pair, with everything that can be wrong listed at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import evaluation_method
from evaluation.comparison import mean_difference
from evaluation.davis_evaluation import Protocol, davis_ground_truth, evaluate_folders, folder_ground_truth
from evaluation.davis_metrics import evaluate_sequence, statistics
from tests.helpers import called
from utils.errors import UserError
from utils.masks import write_mask

ROOT = Path(__file__).resolve().parent.parent
HEADER = "J&F-Mean,J-Mean,J-Recall,J-Decay,F-Mean,F-Recall,F-Decay\n"


def drawn(seed: int, frames: int = 6, objects: int = 2, size: tuple[int, int] = (48, 80)) -> list[np.ndarray]:
    """Index masks of squares that drift apart."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 30, (objects, 2))
    masks = [np.zeros(size, np.uint8) for _ in range(frames)]
    for t, mask in enumerate(masks):
        for k, (y, x) in enumerate(corners, start=1):
            mask[y:y + 14, x + t * k:x + t * k + 12] = k
    return masks


def write(folder: Path, masks: list[np.ndarray], step: int = 1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for t, mask in enumerate(masks):
        write_mask(folder / f"{t * step:05d}.png", mask)


def late(masks: list[np.ndarray]) -> list[np.ndarray]:
    """A result that lags one frame behind."""
    return [masks[max(0, t - 1)] for t in range(len(masks))]


@pytest.fixture
def davis(tmp_path) -> Path:
    """A DAVIS with two sequences, and results for them in `results`."""
    for seed, name in enumerate(("ant", "bee")):
        masks = drawn(seed, frames=6 + seed)
        write(tmp_path / "DAVIS/Annotations/480p" / name, masks)
        write(tmp_path / "results" / name, late(masks))
    (tmp_path / "DAVIS/ImageSets/2017").mkdir(parents=True)
    (tmp_path / "DAVIS/ImageSets/2017/val.txt").write_text("ant\nbee\n")
    return tmp_path / "DAVIS"


def command(*arguments):
    return called(evaluation_method.main, "--workers", 1, *arguments)


def evaluate(truth, results, **protocol):
    return evaluate_folders([results], truth, Protocol(**protocol))[0]


def test_command_writes_the_official_tables_and_unrounded_values(davis, tmp_path):
    results = tmp_path / "results"
    done = command("--task", "semi-supervised", "--davis_path", davis, "--results_path", results, "--workers", 2)
    assert done.returncode == 0, done.stderr
    expected = {}
    for seed, name in enumerate(("ant", "bee")):
        masks = drawn(seed, frames=6 + seed)
        scores = evaluate_sequence(masks, late(masks))
        for k, J, F in zip(scores.ids, scores.J, scores.F):
            expected[f"{name}_{k}"] = statistics(J), statistics(F)
    J, F = np.mean(list(expected.values()), axis=0)
    means = [(J[0] + F[0]) / 2, *J, *F]
    assert (results / "global_results-val.csv").read_text() == \
        HEADER + ",".join(f"{v:.3f}" for v in means) + "\n"
    assert (results / "per-sequence_results-val.csv").read_text() == "Sequence,J-Mean,F-Mean\n" + "".join(
        f"{name}_{k},{expected[f'{name}_{k}'][0].mean:.3f},{expected[f'{name}_{k}'][1].mean:.3f}\n"
        for name in ("ant", "bee") for k in (1, 2))
    stored = json.loads((results / "results-val.json").read_text())
    assert list(stored["global"].values()) == pytest.approx(means, abs=1e-15)
    assert stored["objects"]["bee_2"]["F"]["decay"] == expected["bee_2"][1].decay
    per_frame = stored["sequences"]["bee"]["objects"][1]["J"]
    assert per_frame[0] is None and per_frame[-1] is None
    assert np.mean(per_frame[1:-1]) == expected["bee_2"][0].mean
    assert "bee_2" in done.stdout and f"{means[0]:.3f}" in done.stdout


def test_a_second_run_sees_changed_masks_and_needs_no_first_and_last_result(davis, tmp_path):
    results = tmp_path / "results"
    for name in ("ant/00000.png", "ant/00005.png"):
        (results / name).unlink()
    first = evaluate(davis_ground_truth(davis, "val", "semi-supervised"), results)
    write_mask(results / "ant/00002.png", np.zeros((48, 80), np.uint8))
    second = evaluate(davis_ground_truth(davis, "val", "semi-supervised"), results)
    assert second.means["J-Mean"] < first.means["J-Mean"]


def test_ids_below_the_highest_of_the_first_frame_all_count_as_in_the_official_package(davis, tmp_path):
    gapped = [mask * 3 for mask in drawn(0, objects=1)]
    write(davis / "Annotations/480p/ant", gapped)
    write(tmp_path / "results/ant", gapped)
    evaluation = evaluate(davis_ground_truth(davis, "val", "semi-supervised"), tmp_path / "results")
    assert [row.name for row in evaluation.sequences[0].objects] == ["ant_1", "ant_2", "ant_3"]
    assert {row.J.mean for row in evaluation.sequences[0].objects} == {1.0}


def test_any_folder_pair(tmp_path):
    """Gaps in the ids, an object that appears late, every 5th frame annotated, sequences that only one side has."""
    masks = [np.where(mask == 2, 9, mask).astype(np.uint8) for mask in drawn(3)]
    masks[0][masks[0] == 9] = 0
    write(tmp_path / "gt/ant", masks, step=5)
    write(tmp_path / "results/ant", late(masks), step=5)
    write(tmp_path / "results/ant", [np.full((48, 80), 77, np.uint8)])  # 00000 is not scored
    write_mask(tmp_path / "results/ant/00003.png", np.full((48, 80), 77, np.uint8))  # nor is what is not annotated
    write(tmp_path / "gt/only-truth", masks)
    write(tmp_path / "results/only-result", masks)
    truth = folder_ground_truth(tmp_path / "gt", [tmp_path / "results"])
    assert truth.sequences == ["ant"]
    scores = evaluate(truth, tmp_path / "results").sequences[0].scores
    assert scores.ids == [1, 9]
    assert np.isnan(scores.J).tolist() == [[True, False, False, False, False, True],
                                           [True, True, False, False, False, True]]
    np.testing.assert_array_equal(scores.F, evaluate_sequence(masks, late(masks)).F)
    write_mask(tmp_path / "results/ant/00000.png", masks[0])
    scores = evaluate(truth, tmp_path / "results", include_first_last=True).sequences[0].scores
    assert np.isnan(scores.J).tolist() == [[False] * 6, [True] + [False] * 5]


@pytest.mark.parametrize("truth_value, result_value", [(255, 255), (255, 1), (1, 255)])
@pytest.mark.parametrize("in_davis", [True, False])
def test_single_objects_as_davis_2016_writes_them(tmp_path, truth_value, result_value, in_davis):
    masks = drawn(1, objects=1)
    write(tmp_path / "Annotations/480p/ant", [mask * truth_value for mask in masks])
    write(tmp_path / "results/ant", [mask * result_value for mask in late(masks)])
    (tmp_path / "ImageSets/2017").mkdir(parents=True)
    (tmp_path / "ImageSets/2017/val.txt").write_text("ant")
    truth = davis_ground_truth(tmp_path, "val", "semi-supervised") if in_davis else \
        folder_ground_truth(tmp_path / "Annotations/480p", [tmp_path / "results"])
    evaluation = evaluate(truth, tmp_path / "results")
    assert evaluation.objects[0].name == "ant_1"
    [row] = evaluation.objects
    assert statistics(evaluate_sequence(masks, late(masks)).J[0]) == row.J


def test_unsupervised_scores_all_frames_of_the_best_matching(davis, tmp_path):
    (davis / "Annotations").rename(davis / "Annotations_unsupervised")
    for name in ("ant", "bee"):
        for path in (tmp_path / "results" / name).glob("*.png"):
            mask = np.array(Image.open(path))
            write_mask(path, np.select([mask == 1, mask == 2], [4, 2], 0).astype(np.uint8))
    truth = davis_ground_truth(davis, "val", "unsupervised")
    first = evaluate(truth, tmp_path / "results", task="unsupervised").sequences[0]
    masks = drawn(0)
    expected = evaluate_sequence(masks, late(masks), include_first_last=True)
    assert (first.scores.ids, first.scores.proposals) == ([2, 1], [2, 4])
    np.testing.assert_array_equal(first.scores.J, expected.J[::-1])
    assert [row.name for row in first.objects] == ["ant_1", "ant_2"]
    write_mask(tmp_path / "results/ant/00001.png", np.full((48, 80), 21, np.uint8))
    with pytest.raises(UserError, match=r"ant: ids other than 1 2 3 4 5 \.\.\. 20: 00001 \(the first: 21"):
        evaluate(truth, tmp_path / "results", task="unsupervised")


def test_sequences_without_a_scored_object_add_nothing_and_are_named(davis, tmp_path):
    empty = [np.zeros((48, 80), np.uint8)] * 4
    late_only = [*empty[:3], drawn(0)[0]]
    for name, masks in (("none", empty), ("last", late_only), ("ant", drawn(0))):
        write(tmp_path / "gt" / name, masks)
        write(tmp_path / "other" / name, masks)
    write(tmp_path / "gt/unpredicted", empty)
    done = command("--gt_path", tmp_path / "gt", "--results_path", tmp_path / "other", "--report", tmp_path / "r.html")
    assert done.returncode == 0, done.stderr
    assert "no object is scored in last none" in done.stdout and "lack them: unpredicted" in done.stdout
    assert list(json.loads((tmp_path / "other/results-val.json").read_text())["objects"]) == ["ant_1", "ant_2"]
    everything = evaluate(folder_ground_truth(tmp_path / "gt", [tmp_path / "other"]), tmp_path / "other",
                          task="unsupervised")
    assert [row.name for row in everything.objects] == ["ant_1", "ant_2", "last_1", "last_2"]
    assert everything.means["J&F-Mean"] == 1


def test_problems_are_listed_all_at_once(davis, tmp_path):
    results = tmp_path / "results"
    for name in ("cow", "dog", "eel", "fox", "gnu"):
        masks = drawn(5)
        write(davis / "Annotations/480p" / name, masks)
        write(results / name, masks)
    (davis / "ImageSets/2017/val.txt").write_text("ant\nbee\ncow\ndog\neel\nfox\ngnu\nhen\n")
    for name in ("ant/00001.png", "ant/00003.png"):
        (results / name).unlink()
    for path in (results / "bee").glob("*.png"):
        path.unlink()
    write_mask(results / "cow/00002.png", np.zeros((24, 40), np.uint8))
    Image.fromarray(np.zeros((48, 80, 3), np.uint8)).save(results / "dog/00004.png")
    for t in (3, 4):
        mask = drawn(5)[t]
        mask[:4] = t
        write_mask(results / "eel" / f"{t:05d}.png", mask)
    whole = (results / "fox/00001.png").read_bytes()
    (results / "fox/00001.png").write_bytes(whole[:len(whole) // 2])
    (davis / "Annotations/480p/gnu/00002.png").write_text("not an image")
    done = command("--davis_path", davis, "--results_path", results)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for line in ("ant: 2 of 4 frames are missing: 00001 00003", "bee: the whole sequence is missing",
                 "cow: not of the ground truth's size 80x48: 00002 (the first: 40x24)",
                 "dog: no readable index mask: 00004", "of mode RGB",
                 "eel: ids other than 1 2: 00003 00004 (2 frames; the first: 3)",
                 "fox: no readable index mask: 00001", "gnu: no readable index mask: 00002",
                 "hen: nothing to score: 0 annotated frames", "--allow-missing"):
        assert line in done.stderr, line
    assert not list(results.glob("*.csv")) + list(results.glob("*.json"))


def test_unreadable_masks_are_found_while_scoring_too(davis, tmp_path):
    (tmp_path / "results/bee/00003.png").write_bytes(b"")
    with pytest.raises(UserError, match="bee: no readable index mask: 00003"):
        evaluate_folders([tmp_path / "results"], davis_ground_truth(davis, "val", "semi-supervised"), workers=2)


def test_no_damage_to_a_png_ends_in_a_traceback(tmp_path):
    write(tmp_path / "gt/ant", drawn(0))
    write(tmp_path / "results/ant", drawn(0))
    truth = folder_ground_truth(tmp_path / "gt", [tmp_path / "results"])
    path = tmp_path / "results/ant/00002.png"
    data = path.read_bytes()
    for position in range(8, len(data), len(data) // 56):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1:])
        try:
            evaluation = evaluate(truth, tmp_path / "results")
        except UserError as error:
            assert "results/ant: " in str(error), position
        else:
            assert 0 <= evaluation.means["J&F-Mean"] <= 1, position


def test_missing_frames_may_count_as_empty_masks(davis, tmp_path):
    results = tmp_path / "results"
    (results / "ant/00002.png").unlink()
    for path in (results / "bee").glob("*.png"):
        path.unlink()
    done = command("--davis_path", davis, "--results_path", results, "--allow-missing")
    assert done.returncode == 0, done.stderr
    assert "6 missing frames counted as empty masks" in done.stdout
    assert "Missing" in done.stdout and done.stdout.splitlines()[-1].split() == ["bee_2", "0.000", "0.000", "5"]
    stored = json.loads((results / "results-val.json").read_text())
    assert stored["missing_frames"] == 6
    assert stored["sequences"]["ant"]["objects"][0]["J"][2] == 0
    assert stored["objects"]["bee_1"]["J"]["mean"] == 0


def test_several_results_are_scored_into_their_own_folders(davis, tmp_path):
    for name in ("ant", "bee"):
        write(tmp_path / "perfect" / name, drawn(["ant", "bee"].index(name), frames=6 + (name == "bee")))
    done = command("--davis_path", davis, "--results_path", tmp_path / "results", tmp_path / "perfect")
    assert done.returncode == 0, done.stderr
    scores = [float((tmp_path / name / "global_results-val.csv").read_text().splitlines()[1].split(",")[0])
              for name in ("results", "perfect")]
    assert scores[0] < scores[1] == 1
    first, second = (json.loads((tmp_path / name / "results-val.json").read_text()) for name in ("results", "perfect"))
    assert first["differences"] is None and second["differences"]["first"].endswith("results")
    mean = second["differences"]["means"]["J&F"]
    assert mean["mean"] == pytest.approx(second["global"]["J&F-Mean"] - first["global"]["J&F-Mean"])
    assert f"{mean['mean']:+.3f}" in done.stdout and "2 of 2 sequences" in done.stdout
    assert second["differences"]["objects"]["bee"]["2"]["J"] == pytest.approx(
        1 - first["objects"]["bee_2"]["J"]["mean"])


def test_a_difference_takes_sequences_as_units():
    """One sequence with two objects that differ by 1 and 3, one with one that differs by 2; by hand."""
    [found] = mean_difference([np.array([[1.0], [3.0]]), np.array([[2.0]])])
    assert found.mean == 2 and found.standard_error == 0 and (found.low, found.high) == (2, 2)
    [found] = mean_difference([np.array([[0.0]]), np.array([[1.0]]), np.array([[2.0]]), np.array([[5.0]])])
    assert found.mean == 2 and found.standard_error == pytest.approx(np.std([0, 1, 2, 5], ddof=1) / 2)
    assert 0 < found.low < 1 and 3 < found.high < 5 and found == mean_difference(
        [np.array([[0.0]]), np.array([[1.0]]), np.array([[2.0]]), np.array([[5.0]])])[0], "the samples are seeded"
    [found] = mean_difference([np.array([[1.0], [3.0]])])
    assert found.mean == 2 and np.isnan(found.standard_error)


def test_names_are_in_natural_order_and_hidden_files_are_nobodys(tmp_path):
    """The same masks under names with and without leading zeros have one score; what a file manager leaves has none."""
    masks = drawn(2, frames=12)
    for name, form in (("padded", "{:05d}"), ("plain", "{}")):
        for side, shown in (("gt", masks), ("res", late(late(masks)))):
            for t, mask in enumerate(shown, start=1):
                write_mask(tmp_path / name / side / "s" / f"{form.format(t)}.png", mask)
    odd = tmp_path / "plain"
    (odd / "res/s/3.png").rename(odd / "res/s/3.PNG")
    for place in ("gt/s/._3.png", "gt/s/.00003.4242.png", "res/s/._3.png", "res/s/.DS_Store"):
        (odd / place).write_bytes(b"none")
    for folder in ("gt/.ipynb_checkpoints", "res/.ipynb_checkpoints", "res/s/.ipynb_checkpoints"):
        (odd / folder).mkdir()
    (odd / "gt/.DS_Store").write_bytes(b"none")
    padded, plain = (evaluate(folder_ground_truth(tmp_path / name / "gt", [tmp_path / name / "res"]),
                              tmp_path / name / "res") for name in ("padded", "plain"))
    assert plain.means == padded.means and plain.sequences[0].frames == [str(t) for t in range(1, 13)]
    write_mask(odd / "res/s/4.PNG", masks[0])
    with pytest.raises(UserError, match=r"one file; .* has 4\.PNG and 4\.png"):
        evaluate(folder_ground_truth(odd / "gt", [odd / "res"]), odd / "res")


def test_lists_have_byte_order_marks_and_names_with_blanks(davis, tmp_path):
    for folder in (davis / "Annotations/480p", tmp_path / "results"):
        (folder / "ant").rename(folder / "red ant")
    (davis / "ImageSets/2017/val.txt").write_bytes("\ufeffred ant \r\n\r\nbee\r\n".encode())
    truth = davis_ground_truth(davis, "val", "semi-supervised")
    assert truth.sequences == ["red ant", "bee"]
    assert evaluate(truth, tmp_path / "results").objects[0].name == "red ant_1"
    assert davis_ground_truth(davis, "val", "semi-supervised", ["bee"]).sequences == ["bee"]
    (davis / "ImageSets/2017/val.txt").write_text("bee\n../../../secret\n")
    with pytest.raises(UserError, match=r"val\.txt, line 2: a sequence has a name"):
        davis_ground_truth(davis, "val", "semi-supervised")


@pytest.mark.slow
def test_any_name_and_any_terminal(tmp_path):
    """A name in Latin-1, which is no UTF-8, and a terminal that knows ASCII alone."""
    for side, masks in (("gt", drawn(1)), ("res", late(drawn(1)))):
        for name in (os.fsdecode(b"caf\xe9"), "\u72d7"):
            write(tmp_path / side / name, masks)
    done = subprocess.run([sys.executable, "evaluation_method.py", "--gt_path", tmp_path / "gt", "--results_path",
                           tmp_path / "res", "--report", tmp_path / "r.html", "--workers", "1"], cwd=ROOT,
                          capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
    assert b"\\u72d7_1" in done.stdout and b"caf\\udce9_1" in done.stdout
    assert b"it/s]" not in done.stderr and b"\r" not in done.stderr, "no progress bar in a file"
    assert "caf\\udce9_1," in (tmp_path / "res/per-sequence_results-val.csv").read_text(encoding="utf-8")
    assert "\u72d7_1" in (tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_command(number):
    code = ("import os, time; from evaluation.workers import map_in_processes\n"
            "def work(i): os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)\n"  # one write: lines do not mix
            "list(map_in_processes(work, [1, 2, 3], 2))")
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          text=True) as command:
        workers = [int(command.stdout.readline()) for _ in range(2)]
        command.send_signal(number)
        for _ in range(600):
            if not any(Path(f"/proc/{pid}").exists() for pid in workers):
                break
            time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize("arguments, words", [
    (["--davis_path", "{root}/DAVIS", "--results_path", "{root}/results", "--set", "../../x"], ["--set", "../../x"]),
    (["--davis_path", "{root}/DAVIS", "--results_path", "{root}/results", "--report", "{root}/kept.html"],
     ["kept.html", "--overwrite"]),
    (["--davis_path", "{root}/DAVIS", "--results_path", "{root}/results", "{root}/DAVIS/../results"], ["once"]),
    (["--davis_path", "{root}/DAVIS", "--results_path", "{root}/results", "--sequences", "cow"], ["cow", "ant, bee"]),
    (["--davis_path", "{root}/none", "--results_path", "{root}/results"], ["none"]),
    (["--davis_path", "{root}/DAVIS", "--results_path", "{root}/absent"], ["absent"]),
    (["--davis_path", "{root}/DAVIS", "--results_path", "{root}/results", "--set", "train"],
     ["2017/train.txt", "val.txt"]),
    (["--davis_path", "{root}/DAVIS", "--results_path", "{root}/results", "--task", "unsupervised"],
     ["Annotations_unsupervised"]),
    (["--gt_path", "{root}/DAVIS", "--results_path", "{root}/results"], ["none is in both"]),
    (["--davis_path", "{root}/DAVIS", "--results_path", "{root}/results", "--report", "{root}/a.txt"], ["a.txt"]),
    (["--davis_path", "{root}/DAVIS", "--gt_path", "{root}", "--results_path", "{root}/results"], ["not allowed with"]),
])
def test_mistakes_on_the_command_line(davis, tmp_path, arguments, words):
    (tmp_path / "kept.html").write_text("mine")
    done = command(*(argument.format(root=tmp_path) for argument in arguments))
    assert done.returncode not in (0, None) and "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert (tmp_path / "kept.html").read_text() == "mine"
    assert not list((tmp_path / "results").glob("*.csv"))
