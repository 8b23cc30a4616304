"""Results as annotation tools and training code read them: COCO, YouTube-VIS, LabelMe, YOLO and CVAT.

A frame's picture is called `<sequence>/<frame>.jpg`, as `write_frames` names it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import cv2
import numpy as np
import yaml

from inference.exports.results import Options, ResultSequence
from inference.exports.shapes import box, compressed_rle, edge_polygons, polygons, uncompressed_rle
from utils.files import write_text
from utils.overlay import write_jpeg


def write_coco(sequences: Sequence[ResultSequence], out: Path, options: Options) -> None:
    """One JSON file: an image a frame, an annotation an object in it; `track_id` is the object's id."""
    categories = _categories(options)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sequence in sequences:
        for frame, mask in zip(sequence.frames, sequence.masks()):
            images.append({"id": len(images) + 1, "file_name": f"{sequence.name}/{frame}.jpg",
                           "width": sequence.width, "height": sequence.height})
            for k, own in _objects(mask, sequence.ids):
                annotations.append({"id": len(annotations) + 1, "image_id": len(images), "track_id": k, "iscrowd": 0,
                                    "category_id": categories[options.names[k]],
                                    "segmentation": _segmentation(own, options),
                                    "bbox": list(box(own)), "area": int(own.sum())})
    _write_json(out, categories, images=images, annotations=annotations)


def write_youtube_vis(sequences: Sequence[ResultSequence], out: Path, options: Options) -> None:
    """One JSON file: a video a sequence, an annotation an object with its mask, box and area in every frame or null."""
    categories = _categories(options)
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sequence in sequences:
        videos.append({"id": len(videos) + 1, "width": sequence.width, "height": sequence.height,
                       "length": len(sequence.frames),
                       "file_names": [f"{sequence.name}/{frame}.jpg" for frame in sequence.frames]})
        tracks: dict[int, dict[str, list]] = {k: {"segmentations": [], "bboxes": [], "areas": []} for k in sequence.ids}
        for mask in sequence.masks():
            present = dict(_objects(mask, sequence.ids))
            for k, track in tracks.items():
                own = present.get(k)
                track["segmentations"].append(None if own is None else _segmentation(own, options))
                track["bboxes"].append(None if own is None else list(box(own)))
                track["areas"].append(None if own is None else int(own.sum()))
        for k, track in tracks.items():
            annotations.append({"id": len(annotations) + 1, "video_id": len(videos), "iscrowd": 0,
                                "category_id": categories[options.names[k]], "width": sequence.width,
                                "height": sequence.height, "length": len(sequence.frames), **track})
    _write_json(out, categories, videos=videos, annotations=annotations)


def write_labelme(sequences: Sequence[ResultSequence], out: Path, options: Options) -> None:
    """`<sequence>/<frame>.json` for each frame; `group_id` is the object's id, a mask is one of LabelMe's own kind."""
    for sequence in sequences:
        for frame, mask in zip(sequence.frames, sequence.masks()):
            shapes = []
            for k, own in _objects(mask, sequence.ids):
                common = {"label": options.names[k], "group_id": k, "flags": {}, "description": ""}
                if options.polygons:
                    shapes += [{**common, "shape_type": "polygon", "points": p.tolist()} for p in polygons(own)]
                else:
                    x, y, width, height = box(own)
                    png = cv2.imencode(".png", own[y:y + height, x:x + width].astype(np.uint8) * 255)[1].tobytes()
                    shapes.append({**common, "shape_type": "mask", "mask": base64.b64encode(png).decode("ascii"),
                                   "points": [[x, y], [x + width - 1, y + height - 1]]})
            write_text(out / sequence.name / f"{frame}.json", json.dumps({
                "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{frame}.jpg", "imageData": None,
                "imageHeight": sequence.height, "imageWidth": sequence.width}))


def write_yolo(sequences: Sequence[ResultSequence], out: Path, options: Options) -> None:
    """`data.yaml` and `labels/<sequence>/<frame>.txt`: a line for each connected part, class and outline in shares."""
    labels, names = options.names, dict(enumerate(_categories(options)))
    classes = {label: index for index, label in names.items()}
    for sequence in sequences:
        size = np.array([sequence.width, sequence.height])
        for frame, mask in zip(sequence.frames, sequence.masks()):
            lines = [" ".join([str(classes[labels[k]]), *(f"{value:.6f}" for value in ((part + 0.5) / size).ravel())])
                     for k, own in _objects(mask, sequence.ids) for part in polygons(own) if len(part) > 2]
            write_text(out / "labels" / sequence.name / f"{frame}.txt", "".join(f"{line}\n" for line in lines))
    write_text(out / "data.yaml", yaml.safe_dump({"path": ".", "train": "images", "val": "images", "names": names}))


def write_cvat(sequences: Sequence[ResultSequence], out: Path, options: Options) -> None:
    """One XML file, "CVAT for video 1.1": a track an object, a mask in every frame that it is in."""
    (sequence,) = sequences
    tracks: dict[int, list[str]] = {k: [] for k in sequence.ids}
    last: dict[int, str] = {}  # of each object that was in the frame before
    for number, mask in zip(sequence.numbers, sequence.masks()):
        for k, track in tracks.items():
            own = mask == k
            if own.any():
                x, y, width, height = box(own)
                runs = ", ".join(map(str, uncompressed_rle(own[y:y + height, x:x + width], "C")))
                shape = f'rle="{runs}" left="{x}" top="{y}" width="{width}" height="{height}"'
                track.append(_cvat_mask(number, shape, outside=0))
                last[k] = shape
            elif k in last:  # a track goes on with its last mask until it is said to be outside
                track.append(_cvat_mask(number, last.pop(k), outside=1))
    named = "".join(f"<label><name>{escape(label)}</name></label>" for label in _categories(options))
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>",
             f"  <meta><task><size>{len(sequence.frames)}</size><mode>interpolation</mode><labels>{named}</labels>"
             f"<original_size><width>{sequence.width}</width><height>{sequence.height}</height></original_size>"
             "</task></meta>"]
    for number, (k, track) in enumerate(tracks.items()):
        label = quoteattr(options.names[k])
        lines += [f'  <track id="{number}" label={label} source="automatic">', *track, "  </track>"]
    write_text(out, "\n".join([*lines, "</annotations>", ""]))


def _cvat_mask(frame: int, shape: str, *, outside: int) -> str:
    return f'    <mask frame="{frame}" keyframe="1" outside="{outside}" occluded="0" z_order="0" {shape}/>'


def write_frames(sequences: Sequence[ResultSequence], folder: Path) -> None:
    """The frames that have masks, as `<folder>/<sequence>/<frame>.jpg`."""
    for sequence in sequences:
        for frame, picture in zip(sequence.frames, sequence.pictures()):
            write_jpeg(folder / sequence.name / f"{frame}.jpg", picture)


def _objects(mask: np.ndarray, ids: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """The objects that a frame has: id and mask, bool [H,W]."""
    for k in ids:
        own = mask == k
        if own.any():
            yield k, own


def _segmentation(own: np.ndarray, options: Options) -> object:
    """COCO's notation of a mask."""
    return [p.ravel().tolist() for p in edge_polygons(own)] if options.polygons else compressed_rle(own)


def _categories(options: Options) -> dict[str, int]:
    """A number from 1 on for every label; objects of one label share it."""
    return {label: number for number, label in enumerate(dict.fromkeys(options.names.values()), start=1)}


def _write_json(out: Path, categories: Mapping[str, int], **sections: list[dict[str, Any]]) -> None:
    listed = [{"id": number, "name": label, "supercategory": ""} for label, number in categories.items()]
    write_text(out, json.dumps({**sections, "categories": listed}))
