"""The annotation page's server: what it keeps, what it refuses, and that it makes what the command line makes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from aiohttp.test_utils import TestClient, TestServer

from annotation.doubtful import doubtful_frames, expected_gain
from annotation.outline import BorderLines, cut_box, cut_scribbles
from annotation.server import LARGEST_REQUEST, Server
from annotation.session import Session, StaleError
from annotation.work import Work
from datasets.own_video import open_video
from inference.results import ResultFolder
from models.propagation import build_propagator
from tests.helpers import golden_model
from utils.config import REPOSITORY, load_settings
from utils.errors import UserError
from utils.masks import read_mask, write_mask

SIZE = (48, 32)
FRAMES = 8


def make_frames(folder):
    """A bright square on a dark ground that moves to the right."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    ground = rng.integers(0, 60, (*SIZE[::-1], 3), np.uint8)
    for number in range(FRAMES):
        frame = ground.copy()
        frame[8:24, 4 + 2 * number:20 + 2 * number] = (210, 200, 60)
        cv2.imwrite(str(folder / f"{number:05d}.png"), frame[..., ::-1])
    return folder


def square(number):
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[8:24, 4 + 2 * number:20 + 2 * number] = 1
    return mask


def new_propagator():
    model = golden_model()
    settings = load_settings(overrides=["TEST.INFER_WH", "[0, 0]", "TEST.INPUT_SIZE", "32", "TEST.RADIUS", "4"])
    return lambda: build_propagator(model, settings.TEST)


@pytest.fixture
def session(tmp_path):
    return open_session(make_frames(tmp_path / "clip"), tmp_path / "out")


def open_session(clip, out):
    return Session(open_video(clip), out, out / "merge_vos/clip")


@pytest.fixture
def work(session):
    work = open_work(session)
    yield work
    work.close()


def open_work(session, load=new_propagator):
    files = ResultFolder(session.folder, "merge").sequence("clip", session.video.names, ["confidence"], {}, alone=True)
    work = Work(session, files, load, lambda masks, both: f"{[*masks]} {both}", batch_size=1)
    work.wait()
    return work


def carry(work, direction):
    work.carry(direction)
    work.wait()
    assert work.state(0, 0)["error"] == ""


# --- outlines ---
def test_a_box_around_a_square_finds_it(session):
    found = cut_box(session.frame(0), (1, 4, 24, 24))
    assert (found == (square(0) == 1)).mean() > 0.98


def test_a_box_beyond_the_frame_is_cut_and_an_empty_one_finds_nothing(session):
    assert not cut_box(session.frame(0), (100, 100, 5, 5)).any()
    assert (cut_box(session.frame(0), (-5, -5, 30, 33)) == (square(0) == 1)).mean() > 0.95


def test_scribbles_inside_and_outside(session):
    inside, outside, nothing = (np.zeros(SIZE[::-1], bool) for _ in range(3))
    inside[14:18, 8:16], outside[0:3, :] = True, True
    found = cut_scribbles(session.frame(0), nothing, inside, outside)
    assert found[inside].all() and not found[outside].any()
    assert (found == (square(0) == 1)).mean() > 0.95
    assert not cut_scribbles(session.frame(0), nothing, nothing, outside).any()


def test_a_line_follows_the_border_and_stays_within_the_frame(session):
    lines = BorderLines(session.frame(0), (4, 8))
    line = lines.to((19, 23))  # from corner to corner of the square, round one of the others
    assert line[[0, -1]].tolist() in ([[4, 8], [19, 23]], [[19, 23], [4, 8]])
    rim = cv2.dilate(square(0), np.ones((5, 5))) - cv2.erode(square(0), np.ones((5, 5)))
    assert rim[line[:, 1], line[:, 0]].mean() > 0.9
    for place in ((-5, -5), (500, 500)):
        x, y = lines.to(place).T
        assert x.min() >= 0 and y.min() >= 0 and x.max() < SIZE[0] and y.max() < SIZE[1]


# --- doubtful frames ---
def test_expected_gain_against_its_sum():
    values = np.random.default_rng(0).random(9)
    by_hand = [values[i] * sum(values[j - i] - values[j] for j in range(i, 9)) for i in range(9)]
    assert np.allclose(expected_gain(values), by_hand)


@pytest.mark.parametrize(("confidence", "given", "frames"), [
    ({1: [1, 0.9, 0.9, 0.8]}, [0], []),  # nothing is doubtful
    ({1: [1, 0.9, 0.2, 0.2, 0.2]}, [0], [1]),  # the last that shows the object before it is lost
    ({1: [1, 1, 1, 0, 0.5, 0.5, 0.5, 0.5]}, [0], [2]),  # not where it is hidden, nor late
    ({1: [1, 0.9, 0.2, 0.2, 0.2]}, [0, 4], [1]),
    ({1: [0.1, 0.2, 0.9, 1]}, [3], [2]),  # carried backward
    ({1: [1, 0.9, 0.2, 0.2], 2: [1, 0.9, 0.9, 0.9]}, [0], [1]),  # each object for itself
    ({1: [1, 0.3]}, [], []), ({}, [0], [])])
def test_doubtful_frames(confidence, given, frames):
    assert doubtful_frames({k: dict(enumerate(values)) for k, values in confidence.items()}, given) == frames


# --- what is kept ---
def test_what_is_given_is_on_disk_and_a_new_session_goes_on(session):
    k = session.add_object()
    session.change_object(k, {"name": "Katze 1", "visible": False})
    assert session.give(3, square(3), 0) == 1
    again = open_session(session.video.path, session.folder)
    assert again.objects[k]["name"] == "Katze 1" and again.given == {3}
    assert np.array_equal(again.mask(3).ids, square(3))
    assert np.array_equal(read_mask(session.given_files()[3]), square(3))


def test_a_stale_change_does_nothing(session):
    session.add_object()
    session.give(0, square(0), 0)
    with pytest.raises(StaleError):
        session.give(0, square(1), 0)
    assert np.array_equal(session.mask(0).ids, square(0))
    assert session.withdraw(0, 1) == 2
    assert session.mask(0).source == "none"


def test_deleting_an_object_takes_its_pixels_from_all_masks(session):
    session.add_object(), session.add_object()
    both = square(0)
    both[0:4, 0:4] = 2
    session.give(0, both, 0)
    write_mask(session.results / "00001.png", both)
    session = open_session(session.video.path, session.folder)
    session.delete_object(1)
    assert [np.unique(session.mask(number).ids).tolist() for number in (0, 1)] == [[0, 2], [0, 2]]


def test_masks_of_another_video_are_refused(session, tmp_path):
    write_mask(session.folder / "given/00000.png", np.ones((5, 5), np.uint8))
    with pytest.raises(UserError, match="does not fit"):
        open_session(session.video.path, session.folder)


@pytest.mark.parametrize("change", [{"name": ""}, {"name": "x" * 81}, {"name": "a\nb"}, {"color": "red"},
                                    {"visible": 1}, {"id": 3}, {"name": ["a"]}])
def test_objects_take_no_odd_values(session, change):
    k = session.add_object()
    before = dict(session.objects[k])
    with pytest.raises(UserError):
        session.change_object(k, change)
    assert session.objects[k] == before


# --- carrying ---
def results_of(session):
    return [session.mask(number).ids for number in range(FRAMES)]


def test_a_correction_leaves_the_frames_before_it_and_equals_a_run_with_both_masks(session, work, tmp_path):
    session.add_object()
    session.give(0, square(0), 0)
    carry(work, "forward")
    before = results_of(session)
    session.give(4, square(5), session.revision(4))
    carry(work, "forward")
    after = results_of(session)
    assert all(np.array_equal(before[number], after[number]) for number in range(4))
    assert np.array_equal(after[4], square(5))

    other = open_session(session.video.path, tmp_path / "other")
    other.add_object()
    other.give(0, square(0), 0), other.give(4, square(5), 0)
    fresh = open_work(other)
    carry(fresh, "forward")
    assert all(np.array_equal(a, b) for a, b in zip(after, results_of(other)))
    fresh.close()


def test_a_drawing_is_corrected_again_after_it_was_carried(session, work):
    session.add_object()
    revision = session.give(0, square(0), 0)
    carry(work, "forward")
    session.give(0, square(1), revision)  # what the frame shows has not changed since it was drawn
    assert np.array_equal(session.mask(0).ids, square(1))


def test_both_ways_from_the_middle_and_confidence_of_every_frame(session, work):
    session.add_object()
    session.give(3, square(3), 0)
    carry(work, "both")
    assert session.result_ranges() == [(0, FRAMES)]
    last = {row[0]: row[2] for row in work.state(0, 0)["rows"]}  # a later row of a frame replaces an earlier one
    assert set(last) == set(range(FRAMES))
    kept = {row[0]: row[2] for row in open_work(session).state(0, 0)["rows"]}
    assert kept == pytest.approx(last, abs=2e-4)


def test_a_stopped_run_goes_on_where_it_ended(session, work, monkeypatch):
    session.add_object()
    session.give(0, square(0), 0)
    changed, seen = session.result_changed, []

    def two(number):
        changed(number)
        seen.append(number)
        if len(seen) == 2:
            work.stop()

    monkeypatch.setattr(session, "result_changed", two)
    carry(work, "forward")
    carry(work, "forward")
    assert seen == list(range(FRAMES))


@pytest.mark.parametrize(("direction", "said"), [("sideways", "forward, backward, both"), ("forward", "draw an object"),
                                                 (None, "forward, backward, both")])
def test_what_cannot_be_carried_is_refused(session, work, direction, said):
    with pytest.raises(UserError, match=said):
        work.carry(direction)


def test_a_model_that_cannot_be_loaded_is_said(session):
    def load():
        raise UserError("model x does not exist")

    work = open_work(session, load)
    assert work.state(0, 0)["model"] == "model x does not exist"


def test_exports_have_the_objects_names(session, work):
    k = session.add_object()
    session.change_object(k, {"name": "square"})
    session.give(0, square(0), 0)
    carry(work, "forward")
    contents = json.loads(work.export("coco").read_text())
    assert contents["categories"][0]["name"] == "square" and len(contents["images"]) == FRAMES
    assert work.export("csv").read_text().count("square") == FRAMES
    with pytest.raises(UserError, match="the page exports"):
        work.export("../../etc/passwd")


# --- the server ---
def ask(session, work, *requests):
    """Send requests one after the other, (method, path, options); returns (status, body) of each."""

    async def run():
        hosts = set()
        server = Server(session, work, hosts)
        async with TestClient(TestServer(server.application())) as client:
            hosts.add(f"{client.host}:{client.port}")
            opened = await client.get(f"/?token={server.token}", allow_redirects=False)
            assert opened.status == 303 and "HttpOnly" in opened.headers["Set-Cookie"]
            answers = []
            for method, path, options in requests:
                options = dict(options)
                headers = {"X-Annotation": "1", **options.pop("headers", {})}
                if options.pop("without_token", False):
                    client.session.cookie_jar.clear()
                answer = await client.request(method, path, headers=headers, **options)
                answers.append((answer.status, await answer.read()))
            return answers

    return asyncio.run(run())


def body(*masks):
    return zlib.compress(b"".join(mask.astype(np.uint8).tobytes() for mask in masks))


def test_a_mask_is_given_and_shown(session, work):
    session.add_object()
    (put, _), (got, data) = ask(session, work, ("PUT", "/frames/2/mask", {"data": body(square(2)),
                                                                        "headers": {"X-Revision": "0"}}),
                                ("GET", "/frames/2/mask", {}))
    assert (put, got) == (200, 200)
    assert np.array_equal(np.frombuffer(zlib.decompress(data), np.uint8).reshape(SIZE[::-1]), square(2))


BOMB = zlib.compress(b"\0" * 50_000_000)
HOSTILE = [
    ("another Host", "GET", "/", {"headers": {"Host": "evil.example"}}, 403),
    ("another Origin", "POST", "/objects", {"headers": {"Origin": "http://evil.example"}}, 403),
    ("no token", "GET", "/state", {"without_token": True}, 403),
    ("a wrong token", "GET", "/?token=x", {"without_token": True}, 403),
    ("a change from a form", "POST", "/objects", {"headers": {"X-Annotation": "0"}}, 403),
    ("a path out of the page", "GET", "/../../etc/passwd", {}, 404),
    ("an encoded path", "GET", "/%2e%2e%2f%2e%2e%2fetc%2fpasswd", {}, 404),
    ("a path as frame", "GET", "/frames/..%2f..%2fx.jpg", {}, 404),
    ("a frame that is not there", "GET", "/frames/99.jpg", {}, 404),
    ("a frame number without end", "GET", f"/frames/{'9' * 400}/mask", {}, 404),
    ("a negative frame", "GET", "/frames/-1/mask", {}, 404),
    ("a mask of another size", "PUT", "/frames/0/mask", {"data": body(np.zeros((3, 3))),
                                                         "headers": {"X-Revision": "0"}}, 400),
    ("a mask that is no mask", "PUT", "/frames/0/mask", {"data": b"../../x", "headers": {"X-Revision": "0"}}, 400),
    ("a mask that unpacks to more", "PUT", "/frames/0/mask", {"data": BOMB, "headers": {"X-Revision": "0"}}, 400),
    ("a mask of unknown objects", "PUT", "/frames/0/mask", {"data": body(np.full(SIZE[::-1], 9)),
                                                            "headers": {"X-Revision": "0"}}, 400),
    ("a mask without a revision", "PUT", "/frames/0/mask", {"data": body(square(0))}, 400),
    ("a tab that is behind", "PUT", "/frames/0/mask", {"data": body(square(0)), "headers": {"X-Revision": "7"}}, 409),
    ("a body where none is read", "POST", "/objects", {"data": b"x" * 10, "headers": {}}, 200),
    ("a path as export", "POST", "/exports", {"json": {"format": "../../x"}}, 400),
    ("a list as export", "POST", "/exports", {"json": {"format": ["coco"]}}, 400),
    ("a path as direction", "POST", "/carry", {"json": {"direction": "../"}}, 400),
    ("a body that is no JSON", "POST", "/carry", {"data": b"{"}, 400),
    ("a body too deep", "POST", "/carry", {"data": b"[" * 100_000}, 400),
    ("a box of words", "POST", "/frames/0/cut?box=a,b,c,d", {}, 400),
    ("a box of two signs", "POST", "/frames/0/cut?box=--1,1,5,5", {}, 400),
    ("a line from nowhere", "GET", "/frames/0/line?to=1,1", {}, 400),
    ("a line to a word", "GET", "/frames/0/line?from=1,1&to=1,b", {}, 400),
    ("a line far beyond", "GET", "/frames/0/line?from=-9,-9&to=999999,999999", {}, 200),
    ("a box beyond", "POST", "/frames/0/cut?box=900,900,5,5", {}, 200),
    ("scribbles of another size", "POST", "/frames/0/cut", {"data": body(square(0))}, 400),
    ("an object that is not there", "PATCH", "/objects/200", {"json": {"name": "x"}}, 400),
    ("a name with a path", "PATCH", "/objects/1", {"json": {"path": "../../x"}}, 400),
    ("state since nonsense", "GET", "/state?since=x", {}, 400),
    ("a method that is not there", "DELETE", "/video", {}, 405),
]


@pytest.mark.parametrize(("method", "path", "options", "status"), [case[1:] for case in HOSTILE],
                         ids=[case[0] for case in HOSTILE])
def test_hostile_and_broken_requests(session, work, tmp_path, method, path, options, status):
    before = sorted(tmp_path.rglob("*.png"))
    ((got, said),) = ask(session, work, (method, path, options))
    assert got == status
    assert status == 200 or "error" in json.loads(said)
    assert sorted(tmp_path.rglob("*.png")) == before


@pytest.mark.slow
def test_the_page_is_up_without_what_takes_long_to_import():
    words = "import sys, tools.annotate; print(*{'torchvision', 'timm', 'tensorboard'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", words], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "")


def test_a_body_of_a_gigabyte_is_refused_before_it_is_read(session, work):
    async def endless():
        for _ in range(1000):
            yield b"\0" * 1_000_000

    ((status, _),) = ask(session, work, ("PUT", "/frames/0/mask", {"data": endless(), "headers": {"X-Revision": "0"}}))
    assert status == 413 and LARGEST_REQUEST < 100_000_000
