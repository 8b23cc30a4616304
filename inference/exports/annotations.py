"""Results as annotation tools and training code read them: COCO, YouTube-VIS, LabelMe, YOLO and CVAT.

Every writer takes the sequences, where to write, the label of each object id, and whether outlines replace exact masks.
A frame's picture is called `<sequence>/<frame>.jpg`, as `write_frames` names it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import yaml

from inference.exports.results import ResultSequence
from inference.exports.shapes import box, compressed_rle, edge_polygons, polygons, uncompressed_rle
from utils.files import replacing
from utils.overlay import write_jpeg

Labels = Mapping[int, str]


def write_coco(sequences: Sequence[ResultSequence], out: Path, labels: Labels, *, outlines: bool) -> None:
    """One JSON file: an image a frame, an annotation an object in it; `track_id` is the object's id."""
    categories = _categories(labels)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for sequence in sequences:
        for frame, mask in zip(sequence.frames, sequence.masks()):
            images.append({"id": len(images) + 1, "file_name": f"{sequence.name}/{frame}.jpg",
                           "width": sequence.width, "height": sequence.height})
            for k, own in _objects(mask, sequence.ids):
                shape = [p.ravel().tolist() for p in edge_polygons(own)] if outlines else compressed_rle(own)
                annotations.append({"id": len(annotations) + 1, "image_id": len(images), "track_id": k, "iscrowd": 0,
                                    "category_id": categories[labels[k]], "segmentation": shape,
                                    "bbox": list(box(own)), "area": int(own.sum())})
    _write_json(out, {"images": images, "annotations": annotations, "categories": _category_list(categories)})


def write_youtube_vis(sequences: Sequence[ResultSequence], out: Path, labels: Labels, *, outlines: bool) -> None:
    """One JSON file: a video a sequence, an annotation an object with its mask, box and area in every frame or null."""
    categories = _categories(labels)
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
                track["segmentations"].append(None if own is None else [p.ravel().tolist() for p in edge_polygons(own)]
                                              if outlines else compressed_rle(own))
                track["bboxes"].append(None if own is None else list(box(own)))
                track["areas"].append(None if own is None else int(own.sum()))
        annotations += [{"id": len(annotations) + i, "video_id": len(videos), "category_id": categories[labels[k]],
                         "width": sequence.width, "height": sequence.height, "length": len(sequence.frames),
                         "iscrowd": 0, **track} for i, (k, track) in enumerate(tracks.items(), start=1)]
    _write_json(out, {"videos": videos, "annotations": annotations, "categories": _category_list(categories)})


def write_labelme(sequences: Sequence[ResultSequence], out: Path, labels: Labels, *, outlines: bool) -> None:
    """`<sequence>/<frame>.json` for each frame; `group_id` is the object's id, a mask is one of LabelMe's own kind."""
    for sequence in sequences:
        for frame, mask in zip(sequence.frames, sequence.masks()):
            shapes = []
            for k, own in _objects(mask, sequence.ids):
                common = {"label": labels[k], "group_id": k, "flags": {}, "description": ""}
                if outlines:
                    shapes += [{**common, "shape_type": "polygon", "points": p.tolist()} for p in polygons(own)]
                else:
                    x, y, width, height = box(own)
                    crop = own[y:y + height, x:x + width].astype(np.uint8) * 255
                    shapes.append({**common, "shape_type": "mask", "mask": _png_text(crop),
                                   "points": [[x, y], [x + width - 1, y + height - 1]]})
            _write_json(out / sequence.name / f"{frame}.json", {
                "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{frame}.jpg", "imageData": None,
                "imageHeight": sequence.height, "imageWidth": sequence.width})


def write_yolo(sequences: Sequence[ResultSequence], out: Path, labels: Labels, *, outlines: bool) -> None:
    """`data.yaml` and `labels/<sequence>/<frame>.txt`: a line for each connected part, class and outline in shares."""
    classes = {label: index for index, label in enumerate(_categories(labels))}
    for sequence in sequences:
        size = np.array([sequence.width, sequence.height])
        for frame, mask in zip(sequence.frames, sequence.masks()):
            lines = [" ".join([str(classes[labels[k]]), *(f"{value:.6f}" for value in ((part + 0.5) / size).ravel())])
                     for k, own in _objects(mask, sequence.ids) for part in polygons(own) if len(part) > 2]
            _write_text(out / "labels" / sequence.name / f"{frame}.txt", "".join(f"{line}\n" for line in lines))
    names = {index: label for label, index in classes.items()}
    _write_text(out / "data.yaml", yaml.safe_dump({"path": ".", "train": "images", "val": "images", "names": names}))


def write_cvat(sequences: Sequence[ResultSequence], out: Path, labels: Labels, *, outlines: bool) -> None:
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
    named = "".join(f"<label><name>{_escaped(label)}</name></label>" for label in _categories(labels))
    lines = ['<?xml version="1.0" encoding="utf-8"?>', "<annotations>", "  <version>1.1</version>",
             f"  <meta><task><size>{len(sequence.frames)}</size><mode>interpolation</mode><labels>{named}</labels>"
             f"<original_size><width>{sequence.width}</width><height>{sequence.height}</height></original_size>"
             "</task></meta>"]
    for number, (k, track) in enumerate(tracks.items()):
        lines += [f'  <track id="{number}" label={quoteattr(labels[k])} source="automatic">', *track, "  </track>"]
    _write_text(out, "\n".join([*lines, "</annotations>", ""]))


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


def _categories(labels: Labels) -> dict[str, int]:
    """A number from 1 on for every label; objects of one label share it."""
    return {label: number for number, label in enumerate(dict.fromkeys(labels.values()), start=1)}


def _category_list(categories: Mapping[str, int]) -> list[dict[str, Any]]:
    return [{"id": number, "name": label, "supercategory": ""} for label, number in categories.items()]


def _png_text(picture: np.ndarray) -> str:
    return base64.b64encode(cv2.imencode(".png", picture)[1].tobytes()).decode("ascii")


def _escaped(text: str) -> str:
    return quoteattr(text)[1:-1]


def _write_json(path: Path, contents: Any) -> None:
    _write_text(path, json.dumps(contents))


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
