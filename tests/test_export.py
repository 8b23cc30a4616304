"""Exports: every format is read back, by the library that owns it where there is one, to the pixel."""

from __future__ import annotations

import base64
import csv
import json
import xml.etree.ElementTree as ElementTree
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import tifffile
import yaml
from pycocotools.coco import COCO

from datasets.own_video import open_video
from inference.exports.results import read_results
from inference.exports.shapes import edge_polygons, polygons
from inference.writer import VideoWriter
from tools.export import main
from utils.errors import UserError
from utils.masks import write_mask

RED, GREEN, SIZE = (200, 60, 40), (30, 200, 80), (96, 64)


def mask_of(number: int) -> np.ndarray:
    """Object 1 moves and has a hole, object 2 is in two parts and out of frame 3."""
    mask = np.zeros((64, 96), np.uint8)
    mask[10 + number:30 + number, 20 + 2 * number:50 + 2 * number] = 1
    mask[15 + number:20 + number, 25 + 2 * number:30 + 2 * number] = 0
    if number != 3:
        mask[50:60, 5:15], mask[50:53, 80:95] = 2, 2
    return mask


MASKS = [mask_of(number) for number in range(6)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What `--video` leaves: masks, run.json and confidence; the clip has sound and runs at 10 frames a second."""
    root = tmp_path_factory.mktemp("run")
    with av.open(str(root / "clip.mp4"), "w") as clip:
        pictures, sound = clip.add_stream("libx264", rate=10), clip.add_stream("aac", rate=44_100)
        pictures.width, pictures.height, pictures.pix_fmt = *SIZE, "yuv420p"
        for number, mask in enumerate(MASKS):
            frame = np.where((mask == 1)[..., None], np.uint8(GREEN), np.uint8(RED))
            clip.mux(pictures.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            tone = av.AudioFrame.from_ndarray((np.sin(np.arange(4410) / 10) * 8000).astype(np.int16)[None], "s16",
                                              "mono")
            tone.sample_rate, tone.pts = 44_100, number * 4410
            clip.mux(sound.encode(tone))
        clip.mux(pictures.encode())
        clip.mux(sound.encode())
    for number, mask in enumerate(MASKS):
        write_mask(root / f"output/merge_vos/clip/{number:05d}.png", mask)
    (root / "output/merge_vos/run.json").write_text(json.dumps({"video": str(root / "clip.mp4")}))
    (root / "output/merge_vis").mkdir()
    (root / "output/merge_vis/confidence.csv").write_text(
        "frame,name,object,cells,similarity,margin,lost\n0,00000,1,9,0.9000,0.5000,0\n3,00003,2,0,0.1,0.1,1\n")
    return root / "output"


@pytest.fixture
def export(results, tmp_path):
    def call(kind: str, name: str, *more: object):
        main([str(results), "--format", kind, "--out", str(tmp_path / name), *map(str, more)])
        return tmp_path / name

    return call


def filled(parts: list[np.ndarray]) -> np.ndarray:
    mask = np.zeros((64, 96), np.uint8)
    for part in parts:
        cv2.fillPoly(mask, [part], 1)
    return mask


def without_holes(mask: np.ndarray) -> np.ndarray:
    return filled(cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0])


@pytest.mark.parametrize("more", [(), ("--polygons",)])
def test_coco_reads_its_masks_back(export, more):
    coco = COCO(str(export("coco", "a.json", "--names", "1=dog", *more)))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == ["dog", "object 2"]
    for number, image in enumerate(coco.loadImgs(sorted(coco.getImgIds()))):
        assert (image["file_name"], image["width"], image["height"]) == (f"clip/{number:05d}.jpg", *SIZE)
        found = {a["track_id"]: coco.annToMask(a) for a in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))}
        assert set(found) == set(np.unique(MASKS[number])) - {0}
        for k, mask in found.items():
            wanted = MASKS[number] == k
            assert np.array_equal(mask, without_holes(wanted) if more else wanted)


def test_coco_boxes_and_areas(export):
    annotations = json.loads(export("coco", "a.json").read_text())["annotations"]
    assert (annotations[0]["bbox"], annotations[0]["area"]) == ([20, 10, 30, 20], 30 * 20 - 25)


def test_youtube_vis_has_a_track_an_object(export):
    contents = json.loads(export("youtube-vis", "a.json").read_text())
    from pycocotools import mask as coco
    assert contents["videos"][0]["length"] == 6
    first, second = contents["annotations"]
    assert [shape is None for shape in second["segmentations"]] == [False, False, False, True, False, False]
    assert second["bboxes"][3] is None and second["areas"][3] is None
    for number, shape in enumerate(first["segmentations"]):
        assert np.array_equal(coco.decode(shape), MASKS[number] == 1)


def test_labelme_masks_are_crops_between_two_corners(export):
    folder = export("labelme", "labels")
    for number, mask in enumerate(MASKS):
        contents, read = json.loads((folder / f"clip/{number:05d}.json").read_text()), np.zeros_like(mask)
        assert (contents["imageWidth"], contents["imageHeight"]) == SIZE
        for shape in contents["shapes"]:
            (x1, y1), (x2, y2) = shape["points"]
            crop = cv2.imdecode(np.frombuffer(base64.b64decode(shape["mask"]), np.uint8), cv2.IMREAD_GRAYSCALE)
            read[y1:y2 + 1, x1:x2 + 1][crop > 0] = shape["group_id"]
        assert np.array_equal(read, mask)


def test_yolo_lines_fill_to_the_masks(export, results, tmp_path):
    folder = export("yolo-seg", "yolo", "--frames", tmp_path / "images")
    names = yaml.safe_load((folder / "data.yaml").read_text())["names"]
    assert names == {0: "object 1", 1: "object 2"}
    for number, mask in enumerate(MASKS):
        parts = {0: [], 1: []}
        for line in (folder / f"labels/clip/{number:05d}.txt").read_text().splitlines():
            label, *values = line.split()
            parts[int(label)].append((np.reshape(values, (-1, 2)).astype(float) * SIZE).astype(int))
        for label in (0, 1):
            assert np.array_equal(filled(parts[label]), without_holes(mask == label + 1))
        assert (tmp_path / f"images/clip/{number:05d}.jpg").is_file()


def test_cvat_tracks_end_where_the_object_does(export):
    read = [np.zeros((64, 96), np.uint8) for _ in MASKS]
    for k, track in enumerate(ElementTree.parse(export("cvat", "a.xml", "--names", "1=a<b")).iter("track"), start=1):
        assert track.get("label") == ("a<b" if k == 1 else "object 2")
        outside = {int(shape.get("frame")) for shape in track if shape.get("outside") == "1"}
        assert outside == (set() if k == 1 else {3})
        for shape in track:
            if shape.get("outside") == "0":
                x, y, width, height = (int(shape.get(name)) for name in ("left", "top", "width", "height"))
                runs = [int(run) for run in shape.get("rle").split(",")]
                own = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
                read[int(shape.get("frame"))][y:y + height, x:x + width][own == 1] = k
    assert all(np.array_equal(a, b) for a, b in zip(read, MASKS))


def test_the_table_measures_by_hand_computed_values(export):
    rows = list(csv.DictReader(export("csv", "a.csv").open()))
    assert len(rows) == 12
    second = rows[3]  # frame 1, object 2: two parts
    assert (second["frame"], second["time"], second["object"]) == ("1", "0.100000", "2")
    assert int(second["area"]) == 10 * 10 + 3 * 15
    assert float(second["centroid_x"]) == pytest.approx((100 * 9.5 + 45 * 87) / 145, abs=1e-3)
    assert float(second["centroid_y"]) == pytest.approx((100 * 54.5 + 45 * 51) / 145, abs=1e-3)
    assert [second[f"box_{name}"] for name in ("x", "y", "width", "height")] == ["5", "50", "90", "10"]
    assert float(second["perimeter"]) == 4 * 9 + 2 * 14 + 2 * 2
    assert (rows[0]["confidence"], rows[0]["lost"]) == ("0.4500", "0")
    lost = rows[7]
    assert (lost["area"], lost["centroid_x"], lost["confidence"], lost["lost"]) == ("0", "", "0.0100", "1")


@pytest.mark.parametrize(("lines", "wanted"), [(((8, 32), (56, 32)), 0), (((32, 8), (32, 56)), 90),
                                               (((8, 8), (56, 56)), 45), (((8, 56), (56, 8)), -45)])
def test_orientation_is_that_of_the_longest_extent(tmp_path, lines, wanted):
    write_mask(tmp_path / "m/0.png", cv2.line(np.zeros((64, 64), np.uint8), *lines, 1, 3))
    main([str(tmp_path / "m"), "--format", "csv", "--out", str(tmp_path / "a.csv")])
    assert float(next(csv.DictReader((tmp_path / "a.csv").open()))["orientation"]) == pytest.approx(wanted, abs=0.5)


def test_label_stack(export):
    assert np.array_equal(tifffile.imread(export("tiff", "a.tif")), np.stack(MASKS))


def decoded(path, codec: str | None = None) -> tuple[list[np.ndarray], list[float]]:
    """RGBA pictures and their times; VP9's alpha is only seen by libvpx."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoder = av.CodecContext.create(codec, "r") if codec else stream.codec_context
        packets = (packet if packet.size else None for packet in container.demux(stream))
        frames = [frame for packet in packets for frame in decoder.decode(packet)]
        return [f.to_ndarray(format="rgba") for f in frames], [float(f.pts * stream.time_base) for f in frames]


@pytest.mark.parametrize(("name", "codec"), [("cut.webm", "libvpx-vp9"), ("cut.mov", None)])
def test_cutout_video_has_alpha_times_and_sound(export, name, codec):
    path = export("cutout", name, "--objects", 1)
    pictures, times = decoded(path, codec)
    assert times == pytest.approx([i / 10 for i in range(6)], abs=1e-3)
    for picture, mask in zip(pictures, MASKS):
        assert (abs(picture[..., 3].astype(int) - 255 * (mask == 1)) < 32).mean() > 0.98
    with av.open(str(path)) as container:
        seconds = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0))
    assert seconds == pytest.approx(0.6, abs=0.1)


def test_cutout_pictures_are_exact_and_feathered(export):
    exact, soft = export("cutout", "exact", "--objects", 1), export("cutout", "soft", "--objects", 1, "--feather", 2)
    alpha = lambda folder: cv2.imread(str(folder / "00002.png"), cv2.IMREAD_UNCHANGED)[..., 3]
    assert np.array_equal(alpha(exact), 255 * (MASKS[2] == 1))
    assert np.array_equal(alpha(soft), cv2.GaussianBlur(alpha(exact), (0, 0), 2))


def test_background_color_and_blur(export):
    path = export("background", "a.mp4", "--fill", "#0000ff", "--objects", 1)
    picture = next(open_video(path).frames()).astype(int)
    inside, outside = MASKS[0] == 1, cv2.dilate(MASKS[0], np.ones((9, 9))) == 0
    assert abs(picture[outside] - (0, 0, 255)).max() < 12
    assert np.median(abs(picture[inside] - GREEN)) < 8
    assert export("background", "b.mp4", "--fill", "blur").is_file()


def test_outlines_of_a_point_and_a_line():
    mask = np.zeros((5, 5), np.uint8)
    mask[1, 1], mask[3, 1:4] = 1, 1
    assert sorted(part.tolist() for part in polygons(mask)) == [[[1, 1]], [[1, 3], [3, 3]]]
    areas = sorted(cv2.contourArea(part.astype(np.int32)) for part in edge_polygons(mask))
    assert areas == [1, 3]


@pytest.mark.parametrize(("words", "said"), [
    (["--format", "csv", "--out", "a.json"], "ends in .csv"),
    (["--format", "csv", "--out", "a.csv", "--feather", "2"], "--feather means nothing"),
    (["--format", "csv", "--out", "a.csv", "--names", "7=x"], "ID=NAME"),
    (["--format", "cutout", "--out", "a.webm", "--objects", "9"], "--objects takes the ids 1, 2"),
    (["--format", "background", "--out", "a.mp4", "--fill", "red"], "#rrggbb"),
    (["--format", "cvat", "--out", "a.xml", "--sequence", "dog"], "dog is none of clip"),
])
def test_what_does_not_fit_is_refused_before_anything_is_written(results, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=said):
        main([str(results), *words])
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(export):
    export("csv", "a.csv")
    with pytest.raises(UserError, match="nothing is overwritten"):
        export("csv", "a.csv")


def test_masks_of_another_video_are_refused(results, tmp_path):
    writer = VideoWriter(tmp_path / "other.mp4", (48, 64), Fraction(10))
    writer.write(np.zeros((64, 48, 3), np.uint8), Fraction(0))
    writer.close()
    with pytest.raises(UserError, match="has no frame 00001"):
        read_results(results, str(tmp_path / "other.mp4"), None)


def test_a_mask_of_another_size_is_named(tmp_path):
    write_mask(tmp_path / "m/0.png", np.ones((4, 4), np.uint8))
    write_mask(tmp_path / "m/1.png", np.ones((4, 5), np.uint8))
    with pytest.raises(UserError, match=r"0\.png is 4x4 and .*1\.png 5x4"):
        read_results(tmp_path / "m", None, None)
