"""The report: what it says, that it needs nothing from outside, and that a browser shows it."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from evaluation.comparison import compare
from evaluation.davis_evaluation import Protocol, SequenceResult, evaluate_folders, folder_ground_truth
from evaluation.davis_metrics import Scores
from evaluation.report import worst_frames, write_report
from utils.masks import write_mask

pytestmark = pytest.mark.slow

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
NAMES = ("plain", "<odd> & \"quoted'")


@pytest.fixture
def pages(tmp_path, monkeypatch) -> dict:
    """Reports on one and on two results; in `ant` the second is wrong at frame 3, in `bee` both lack frame 2."""
    for seed, sequence in enumerate(("ant", "bee")):
        for t in range(6):
            mask = np.zeros((60, 100), np.uint8)
            mask[10:30, 10 + 3 * t:30 + 3 * t] = 1
            mask[35:50, 60 - 3 * t:80 - 3 * t] = 4
            write_mask(tmp_path / "gt" / sequence / f"{t:05d}.png", mask)
            for i, name in enumerate(NAMES):
                shifted = np.roll(mask, 1 + seed + i + 20 * (t == 3) * i, axis=1)
                if (sequence, t) != ("bee", 2):
                    write_mask(tmp_path / name / sequence / f"{t:05d}.png", shifted)
        folder = tmp_path / "JPEGImages" / sequence
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "00003.jpg"), np.full((60, 100, 3), (0, 0, 250), np.uint8))
    results = [tmp_path / name for name in NAMES]
    truth = folder_ground_truth(tmp_path / "gt", results)
    evaluations = evaluate_folders(results, truth, Protocol(allow_missing=True))
    pages = {"one": tmp_path / "one.html", "two": tmp_path / "two.html"}
    write_report(pages["one"], evaluations[:1], truth)
    write_report(pages["two"], evaluations, truth, comparisons=[compare(*evaluations)])
    long = [replace(evaluations[i % 2], results=tmp_path / f"a_run_with_a_rather_long_name_{i}/merge_vos")
            for i in range(9)]
    pages["nine"] = tmp_path / "nine.html"
    with monkeypatch.context() as patched:
        patched.setattr("evaluation.report._pictures", lambda image, folders: [PIXEL] * len(folders))
        write_report(pages["nine"], long, truth, comparisons=[compare(long[0], other) for other in long[1:]])
    pages["means"] = [evaluation.means for evaluation in evaluations]
    return pages


class Elements(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.mark.parametrize("kind, results", [("one", 1), ("two", 2)])
def test_a_page_is_self_contained_and_says_what_was_found(pages, kind, results):
    page = pages[kind].read_text()
    found = Elements(page)
    assert not re.search(r"(https?:)?//[a-z]|@import|url\(", re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", page))
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in found.all("img"))
    assert len(found.all("img")) == 2 * 3 * (1 + results)  # sequences, worst frames, truth and results
    assert [section["id"] for section in found.all("section")] == ["ant", "bee"]
    assert len(found.all("svg")) == 4
    assert {a["href"] for a in found.all("a")} == {"#ant", "#bee"}
    for name, means in list(zip(NAMES, pages["means"]))[:results]:
        assert name in found.text
        assert all(f"{value:.3f}" in found.text for value in means.values())
    for row in ("ant_1", "ant_4", "bee_1", "bee_4"):
        assert row in found.text
    assert "1 missing frames counted as empty masks" in found.text
    assert ("object 4" in found.text) == (results == 1)


def test_the_features_are_named(pages, tmp_path):
    results = [tmp_path / name for name in NAMES]
    (results[1] / "run.json").write_text(json.dumps({"model": "some/S.pth", "method": {
        "KEY": "merge+0.5*dino", "model_sha256": "01234567" + 56 * "f", "feature_weights": {"dino": "89abcdef" * 8}}}))
    (results[0] / "run.json").write_text("{}")
    truth = folder_ground_truth(tmp_path / "gt", results)
    write_report(tmp_path / "features.html", evaluate_folders(results, truth, Protocol(allow_missing=True)), truth)
    lines = [line for line in (tmp_path / "features.html").read_text().splitlines() if ": features " in line]
    assert len(lines) == 1
    assert f"{html.escape(NAMES[1])}: features merge+0.5*dino (S.pth 01234567, dino 89abcdef)</p>" in lines[0]


def test_nine_results_are_told_apart_by_what_differs(pages):
    found = Elements(pages["nine"].read_text())
    heads = [head["title"] for head in found.all("td") if "title" in head]
    assert len(heads) == 9 and all(title.endswith("/merge_vos") for title in heads)
    body = found.text[found.text.index("All objects"):]
    assert "a_run_with" not in body, "what all names share is left out"
    assert len({element["style"] for element in found.all("span")}) == 9, "a colour each"
    assert body.count(" ± ") == 8 * 3 + 1 and "Differences from 0" in body


def test_curves_have_gaps_where_nothing_is_scored_and_pictures_show_the_frame(pages, tmp_path):
    found = Elements(pages["two"].read_text())
    curves = [path["d"] for path in found.all("path") if "H" not in path["d"]]
    assert len(curves) == 2 * 2 * 2  # sequences, metrics, results
    assert all(curve.count("L") == 3 and curve.count("M") == 1 for curve in curves)  # frames 1 to 4 of 0 to 5
    image = next(i for i in found.all("img") if i["alt"] == "ground truth")
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(image["src"].split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[:2] == (252, 420)


def test_worst_frames_are_the_lowest_of_any_result_and_not_neighbours():
    def result(values):
        scores = np.array([[np.nan, *values, np.nan]])
        return SequenceResult("ant", [str(t) for t in range(len(values) + 2)], Scores([1], [1], scores, scores), [], "")

    values = np.linspace(0.9, 0.8, 30)
    low, other = values.copy(), values.copy()
    low[[10, 11]], other[20] = (0.1, 0.2), 0.05
    assert worst_frames([result(low), result(other)]) == [11, 21, 30]
    assert worst_frames([result(values[:1])]) == [1]


def browse(page: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                           f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri()],
                          capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("kind", ["one", "two", "nine"])
def test_a_browser_sorts_the_table_and_the_page_fits_a_phone(pages, kind):
    """A script added to a copy clicks the heading J&F twice and notes what the browser made of it."""
    probe = pages[kind].with_name("probe.html")
    probe.write_text(pages[kind].read_text() + """<script>
      const rows = () => [...document.querySelectorAll("table.sortable tbody tr")].map(r => +r.cells[1].dataset.value);
      const button = document.querySelectorAll("table.sortable thead button")[1];
      button.click(); const up = rows(); button.click(); const down = rows();
      const root = document.documentElement;
      const broken = [...document.images].filter(i => !i.naturalWidth).length;
      document.title = JSON.stringify({up, down, over: root.scrollWidth - root.clientWidth, broken});
    </script>""")
    done = browse(probe, "--window-size=500,900", "--dump-dom")
    title = re.search("<title>(.*?)</title>", done.stdout)
    assert title, done.stderr[-2000:]
    seen = json.loads(html.unescape(title[1]))
    assert len(seen["up"]) == 4 and seen["up"] == sorted(seen["up"]) and seen["up"][0] < seen["up"][-1]
    assert seen["down"] == seen["up"][::-1]
    assert seen["over"] <= 0, "the page scrolls sideways on a phone"
    assert seen["broken"] == 0


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_browser_draws_it(pages, tmp_path):
    shot = tmp_path / "shot.png"
    done = browse(pages["two"], "--window-size=1200,2000", f"--screenshot={shot}")
    assert shot.exists(), done.stderr[-2000:]
    picture = cv2.imread(str(shot)).astype(int)
    blue, green, red = picture[..., 0], picture[..., 1], picture[..., 2]
    assert (picture.min(axis=2) > 250).mean() > 0.3  # paper
    assert ((red > 200) & (green < 60) & (blue < 60)).sum() > 1000  # the red frame that the masks are drawn on
    assert ((red < 60) & (abs(green - 111) < 20) & (blue > 220)).sum() > 100  # the first result's curves
