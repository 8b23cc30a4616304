"""How long a person waits for the annotation page, on real frames, in Chromium.

    python benchmarks/annotation.py VIDEO --box 420,200,300,400 [--size 1280x720] [--rounds 5]

The first frames of VIDEO are resized to --size. Each round starts tools/annotate.py anew and takes the time
    from the command until Chromium, which is open already, shows the first frame, and until the model is loaded;
    of the outline of the object in --box, and of the same outline by a scribble across it, from request to answer;
    of a stroke over the whole frame, 120 pixels wide: what each move of the pointer keeps the page busy for, and how
        long after the move the screen shows it.
The table has the median and the longest of all rounds. Needs requirements-dev.txt and Chromium.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from benchmarks.common import width_and_height
from datasets.own_video import open_video
from utils.config import REPOSITORY
from utils.errors import UserError, run_script
from utils.overlay import write_jpeg

FRAMES = 25
WATCH_STROKE = """() => {
  window.moves = [];
  const began = new Map();
  addEventListener('pointermove', (event) => began.set(event, performance.now()), true);
  addEventListener('pointermove', (event) => {
    const busy = performance.now() - began.get(event);
    requestAnimationFrame(() => {  // what runs after this has been painted
      const { port1, port2 } = new MessageChannel();
      port1.onmessage = () => window.moves.push([busy, performance.now() - event.timeStamp]);
      port2.postMessage(0);
    });
  });
}"""


def main() -> None:
    """Run all rounds, print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video")
    parser.add_argument("--size", type=width_and_height, default=(1280, 720), metavar="WxH")
    parser.add_argument("--box", required=True, metavar="X,Y,W,H", help="around an object [pixels of --size]")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise UserError("the page is measured in Chromium, which is not installed")
    from playwright.sync_api import sync_playwright

    times: dict[str, list[float]] = {}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        for number, frame in enumerate(open_video(args.video).frames(0, FRAMES)):
            write_jpeg(Path(folder) / f"clip/{number:05d}.jpg", cv2.resize(frame, args.size))
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(args.rounds):
            page = browser.new_page(viewport={"width": 1400, "height": 900})
            for name, seconds in one_round(page, Path(folder), args):
                times.setdefault(name, []).append(seconds)
            page.close()
            shutil.rmtree(Path(folder) / "out")
        browser.close()
    print("| | median ms | longest ms |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {1000 * statistics.median(values):.0f} | {1000 * max(values):.0f} |")


def one_round(page, folder: Path, args: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """What is measured, and seconds."""
    start = time.perf_counter()
    command = subprocess.Popen([sys.executable, str(REPOSITORY / "tools/annotate.py"), "clip", "--output", "out",
                                "--no-browser"], cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://\S+", command.stdout.readline())[0]
        page.goto(address)
        page.wait_for_selector("#stage[data-shown]")
        yield "first frame shown", time.perf_counter() - start
        page.wait_for_selector("[data-direction=forward]:enabled")
        yield "model loaded", time.perf_counter() - start
        cut = address.split("?")[0] + "frames/0/cut"
        x, y, width, height = map(int, args.box.split(","))
        masks = np.zeros((3, *args.size[::-1]), np.uint8)  # so far, inside, outside
        cv2.line(masks[1], (x + width // 2, y + height // 4), (x + width // 2, y + height * 3 // 4), 1, 8)
        for name, url, body in (("outline by a box", f"{cut}?box={args.box}", b""),
                                ("outline by a scribble", cut, zlib.compress(masks.tobytes(), 1))):
            start = time.perf_counter()
            answer = page.request.post(url, data=body, headers={"X-Annotation": "1"})
            yield name, time.perf_counter() - start
            assert answer.ok, answer.text()
        yield from stroke(page)
    finally:
        command.send_signal(signal.SIGINT)
        command.wait()


def stroke(page) -> Iterator[tuple[str, float]]:
    """A stroke from corner to corner of the frame."""
    page.evaluate(WATCH_STROKE)
    page.keyboard.press("n")
    page.wait_for_selector("#objects li.chosen")
    page.keyboard.press("b")
    page.fill("#size", "120")
    area = page.locator("#picture").bounding_box()
    page.mouse.move(area["x"] + 5, area["y"] + 5)
    page.mouse.down()
    page.mouse.move(area["x"] + area["width"] - 5, area["y"] + area["height"] - 5, steps=60)
    page.mouse.up()
    for busy, shown in page.evaluate("window.moves"):
        yield "a move of the brush: work", busy / 1000
        yield "a move of the brush: until shown", shown / 1000


if __name__ == "__main__":
    run_script(main)
