"""The annotation page in a real browser: objects by box and by brush, carried, corrected, exported and found again."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.helpers import released_state
from utils.config import REPOSITORY, load_train_config, resolved
from utils.masks import read_mask

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="the page is tested in Chromium, which is "
                                                   "not installed")]
FRAMES, SIZE = 6, (160, 96)


@pytest.fixture
def files(tmp_path):
    """A clip of a bright square that moves, and a model."""
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 60, (*SIZE[::-1], 3), np.uint8)
    (tmp_path / "clip").mkdir()
    for number in range(FRAMES):
        frame = ground.copy()
        frame[30:60, 20 + 4 * number:60 + 4 * number] = (210, 200, 60)
        cv2.imwrite(str(tmp_path / f"clip/{number:05d}.png"), frame[..., ::-1])
    config = load_train_config(REPOSITORY / "data/configs/train_config_default_S.json")
    torch.save({"model": released_state("S_color_dul"), "train_config": resolved(config)}, tmp_path / "model.pkl")
    return tmp_path


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api").sync_playwright().start()
    opened = playwright.chromium.launch(executable_path=CHROMIUM, args=[
        "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"])
    yield opened
    opened.close()
    playwright.stop()


class Server:
    """The command, started; `address` is what it prints."""

    def __init__(self, files: Path):
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tools/annotate.py"), "clip", "--resume", "model.pkl", "--no-browser",
             "--device", "cpu", "--set", "TEST.INPUT_SIZE", "48", "TEST.RADIUS", "4"],
            cwd=files, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        self.address = re.search(r"http://\S+", self.process.stdout.readline())[0]

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


class Page:
    """The page as a person uses it; places are pixels of the frame."""

    def __init__(self, browser, address: str):
        from playwright.sync_api import expect

        self.expect = expect
        self.page, self.errors = browser.new_page(viewport={"width": 1000, "height": 700}), []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.frame(0)
        self.carried()

    def drag(self, *places: tuple[int, int]) -> None:
        area = self.page.locator("#picture").bounding_box()
        at = lambda place: [area[side] + (place[i] + 0.5) * area["width"] / SIZE[0] for i, side in enumerate("xy")]
        self.page.mouse.move(*at(places[0]))
        self.page.mouse.down()
        for place in places[1:]:
            self.page.mouse.move(*at(place), steps=4)
        self.page.mouse.up()

    def click(self, place: tuple[int, int]) -> None:
        self.drag(place)

    def press(self, key: str) -> None:
        self.page.keyboard.press(key)

    def saved(self) -> None:
        self.expect(self.page.locator("#saved")).to_have_text("saved", timeout=20_000)

    def carried(self) -> None:
        """Wait until the model is there and nothing is being carried."""
        self.expect(self.page.locator("[data-direction=forward]")).to_be_enabled(timeout=60_000)

    def frame(self, number: int) -> None:
        self.expect(self.page.locator("#time")).to_contain_text(f"frame {number} of", timeout=20_000)
        self.expect(self.page.locator("#stage[data-shown]")).to_be_visible(timeout=20_000)

    def carry(self) -> None:
        self.press("c")
        self.expect(self.page.locator("[data-direction=forward]")).to_be_disabled(timeout=20_000)
        self.carried()

    def download(self, name: str) -> str:
        with self.page.expect_download() as download:
            self.page.click(f"[data-format={name}]")
        return Path(download.value.path()).read_text()


def test_a_video_from_the_first_stroke_to_the_export(files, browser):
    server = Server(files)
    page = Page(browser, server.address)
    page.press("g")
    page.drag((14, 24), (66, 66))
    page.saved()
    page.press("n")
    page.page.wait_for_selector("#objects li[data-id='2'].chosen")
    page.press("b")
    page.drag((100, 80), (130, 80))
    page.saved()
    first = read_mask(files / "output/clip/given/00000.png")
    square = np.zeros(SIZE[::-1], bool)
    square[30:60, 20:60] = True
    assert ((first == 1) == square).mean() > 0.99
    assert set(np.unique(first)) == {0, 1, 2} and first[80, 115] == 2

    page.carry()
    results = files / "output/clip/merge_vos/clip"
    assert len(list(results.glob("*.png"))) == FRAMES
    before = [read_mask(results / f"{number:05d}.png") for number in range(FRAMES)]

    for _ in range(3):
        page.press("ArrowRight")
    page.frame(3)
    page.press("b")
    page.drag((10, 10), (40, 10))  # the chosen object, 2
    page.saved()
    page.press("Control+z")
    page.press("Control+y")
    page.saved()
    page.carry()
    after = [read_mask(results / f"{number:05d}.png") for number in range(FRAMES)]
    assert all(np.array_equal(a, b) for a, b in zip(before[:3], after[:3]))
    assert after[3][10, 25] == 2 and before[3][10, 25] != 2
    coco = json.loads(page.download("coco"))
    assert len(coco["images"]) == FRAMES and {a["track_id"] for a in coco["annotations"]} == {1, 2}
    assert page.download("csv").startswith("sequence,frame")
    command = page.page.input_value("#command")
    assert page.errors == []
    assert server.end() == 0

    # The command that the page shows makes the same masks.
    words = [word for word in shlex.split(command)[2:] if word != "--continue"]
    words[words.index("--mask-output-dir") + 1] = "again"
    done = subprocess.run([sys.executable, str(REPOSITORY / "infer_vos_dul.py"), *words, "--device", "cpu"],
                          cwd=files, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert all(np.array_equal(read_mask(files / f"again/merge_vos/clip/{number:05d}.png"), after[number])
               for number in range(FRAMES))

    # Started again, everything is there.
    server = Server(files)
    page = Page(browser, server.address)
    assert page.page.locator("#objects li").count() == 2
    page.expect(page.page.locator("#withdraw")).to_be_enabled()  # frame 0 is a drawing
    assert server.end(signal.SIGTERM) == 0


def test_a_killed_server_has_every_finished_stroke_and_a_second_one_is_refused(files, browser):
    server = Server(files)
    page = Page(browser, server.address)
    page.press("b")
    page.drag((100, 80), (130, 80))
    page.saved()
    page.press("m")
    for corner in ((20, 30), (59, 30), (59, 59), (20, 59), (20, 30)):
        page.click(corner)
    page.expect(page.page.locator("#undo")).to_be_enabled()
    page.saved()
    second = subprocess.run([sys.executable, str(REPOSITORY / "tools/annotate.py"), "clip", "--resume", "model.pkl",
                             "--no-browser"], cwd=files, capture_output=True, text=True)
    assert second.returncode == 1 and "another one does now" in second.stderr and "Traceback" not in second.stderr
    server.end(signal.SIGKILL)
    mask = read_mask(files / "output/clip/given/00000.png")
    assert mask[80, 115] == 1  # the brush
    assert mask[32:58, 22:58].all() and not mask[:28].any() and not mask[:, :18].any()  # magnetic, along the square
