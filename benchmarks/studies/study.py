"""What raises J&F without training: each option against the published protocol, on two halves of a labelled list.

    python benchmarks/studies/study.py --model NAME=FILE [NAME=FILE ...] --list filelists/davis16 --root ROOT
        [--features SPEC [--feature-weights FILE ...]] [--cache FOLDER]
        [--size 864x480] [--options OPTION ...] [--every 1] [--score-every 1] [--results study.jsonl] [--labels FOLDER]

The sequences are split alternately into two halves, so that what was chosen on one can be confirmed on the other. An
option is a name of `OPTIONS`, or several with + between them. The table gives, for each model and option, J&F on each
half, what it adds to `colornet` there, the standard error of that gain over sequences, and seconds a frame for features
and labels (which the options of a row share with those before it) and for making pixels of them. Each sequence's scores
are added to --results; what is there is not measured again. The first and the last frame are not scored, as in DAVIS
2017. To choose quickly, --every N takes every N-th frame, so that frames are N times as far apart; --score-every N
scores every N-th of the frames that labels are carried through; --labels keeps these for other ways to pixels.
--features takes other features than the models' own (docs/experiments/features.md), and has no options of branches.
--cache keeps features in half precision, so that neighbours, radius, temperature, context and pixels are compared
without encoding again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the repository, when started as a file

from benchmarks.common import width_and_height
from benchmarks.studies.stores import FeatureCache, LabelStore
from datasets.evaluation_video import VideoFrame, read_video
from datasets.filelists import EvaluationSequence, find_list, read_evaluation_list
from evaluation.davis_metrics import evaluate_sequence, statistics
from models import load_model
from models.colornet import ColorNet
from models.features import Features, load_features, needs_model, weight_files
from models.label_maps import interpolated, map_of_parts, parts_of_cells, resize, upsampled_argmax, weighed
from models.label_propagation import LabelPropagator, context_gaps
from models.neighbours import NeighbourPropagation
from models.upsampling import BilateralUpsampling
from utils.errors import UserError, run_script
from utils.feature_spec import folder_name
from utils.images import imagenet_normalise

Network = ColorNet | Features
Guide = Callable[[Network, np.ndarray], np.ndarray]  # a frame to the picture whose colours are followed
Maps = tuple[Tensor, ...]  # of one frame, unit [C,h,w]: the branches `color` and `cls`, or other features alone


@dataclass(frozen=True)
class Options:
    """How masks are made. The defaults are the published protocol."""

    scale: float = 1  # of the size that frames are resized to
    stride: int = 8  # [pixels] between features; 4: of four shifted frames
    radius: int = 12
    knn: int = 10
    temperature: float = 0.05
    context: int = 20
    custom_interval: bool = False
    cls_share: float = 0.5  # of the squared length of `merge`; 0.5 is the published sum of both
    first: str = "bilinear"  # how the first mask becomes labels: bilinear, area, or sharp (one class a cell)
    flip: bool = False  # the mean with the labels carried through mirrored frames
    scales: bool = False  # the mean with the labels carried through frames 4/3 as large
    backward: bool = False  # the mean with the labels carried back from the last frame
    subcells: int = 1  # labels a side of a cell
    upsample: str = "bilinear"  # a name of UPSAMPLING
    stretch: bool = False  # stretch the labels before the argmax
    background: float = 1  # weight of its labels in the argmax

    @property
    def carrying(self) -> Options:
        """What the labels on the feature map depend on."""
        return dataclasses.replace(self, upsample="bilinear", stretch=False, background=1)


def network_guide(stage: str) -> Guide:
    """The three main components of what a stage of the network sees, in place of colours."""

    def guide(model: ColorNet, frame: np.ndarray) -> np.ndarray:
        x = model.relu(model.bn1(model.conv1(imagenet_normalise(torch.from_numpy(frame).permute(2, 0, 1))[None])))
        x = x if stage == "stride 2" else model.layer1(model.maxpool(x))
        values = x[0].flatten(1).T  # [h*w,C]
        values = values - values.mean(0)
        main = values @ torch.linalg.eigh(values.T @ values).eigenvectors[:, -3:]  # [h*w,3]
        levels = (128 + 40 * main / main[:, -1].std()).clamp(0, 255).byte().view(*x.shape[2:], 3)
        return cv2.resize(levels.numpy(), frame.shape[1::-1], interpolation=cv2.INTER_LINEAR)

    return guide


def noise(frame: np.ndarray) -> float:
    """The deviation of a frame's noise, channels in [0,1] (Immerkaer, 1996)."""
    kernel = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float32)
    return float(np.abs(cv2.filter2D(frame.astype(np.float32) / 255, -1, kernel)).mean() * np.sqrt(np.pi / 2) / 6)


UPSAMPLING: dict[str, tuple[Callable[[np.ndarray], BilateralUpsampling], Guide | None] | None] = {
    "bilinear": None,
    "bilateral": (lambda frame: BilateralUpsampling(), None),
    **{name: (lambda frame, options=options: BilateralUpsampling(**options), None) for name, options in {
        **{f"colour {sigma}": {"sigma_color": sigma} for sigma in (0.05, 0.07, 0.2)},
        **{f"distance {sigma:.0f}": {"sigma_distance": sigma} for sigma in (1.0, 2.0)},
        **{f"window {cells}": {"window": cells} for cells in (3, 7)}}.items()},
    "colour by noise": (lambda frame: BilateralUpsampling(sigma_color=0.05 + 5 * noise(frame)), None),
    "colour by contrast": (lambda frame: BilateralUpsampling(sigma_color=0.4 * float(frame.std()) / 255), None),
    "guide stride 2": (lambda frame: BilateralUpsampling(), network_guide("stride 2")),
    "guide stride 4": (lambda frame: BilateralUpsampling(), network_guide("stride 4")),
}
OPTIONS: dict[str, dict] = {
    "colornet": {},
    **{name: {"upsample": name} for name in UPSAMPLING if name != "bilinear"},
    "area": {"first": "area"}, "sharp": {"first": "sharp"}, "flip": {"flip": True}, "scales": {"scales": True},
    "backward": {"backward": True},
    "color": {"cls_share": 0}, "cls": {"cls_share": 1}, **{f"cls {n}": {"cls_share": n} for n in (0.25, 0.75)},
    **{f"radius {n}": {"radius": n} for n in (6, 8, 18, 25)}, **{f"k {n}": {"knn": n} for n in (5, 15, 20)},
    **{f"temperature {t}": {"temperature": t} for t in (0.03, 0.1)}, "context 10": {"context": 10},
    **{f"subcells {n}": {"subcells": n} for n in (2, 3, 4)}, "gaps": {"custom_interval": True},
    "stride 4": {"stride": 4}, "stretch": {"stretch": True},
    **{f"background {w}": {"background": w} for w in (0.8, 0.9)},
    **{f"{lines} lines": {"scale": lines / 480} for lines in (576, 640, 720)},
}


def options_of(name: str) -> Options:
    """`bilateral+radius 25` to options; `UserError` for a name that is not known."""
    changes: dict = {}
    for part in name.split("+"):
        if part not in OPTIONS:
            raise UserError(f"an option is one of {', '.join(OPTIONS)}, or several with + between; got {part}")
        changes |= OPTIONS[part]
    return Options(**changes)


def maps_of(model: Network, pictures: Tensor) -> Maps:
    """Pictures in [0,1], [N,3,H,W], to the maps [N,C,h,w] that features are made of."""
    if isinstance(model, ColorNet):
        return model.branches(imagenet_normalise(pictures), local=True, dense=True)
    return (model.encode(pictures),)


@torch.inference_mode()
def encode(model: Network, frames: Sequence[VideoFrame], options: Options, size: tuple[int, int]) -> Iterator[Maps]:
    """The maps of each frame at `size` (width, height) [pixels] times the scale."""
    shape = [round(side * options.scale / 16) * 16 for side in reversed(size)]
    shifts = ((0, 0),) if options.stride == 8 else ((0, 0), (0, 4), (4, 0), (4, 4))
    for frame in frames:
        picture = resize(torch.from_numpy(frame.image).permute(2, 0, 1).float() / 255, shape)[None]
        # A picture moved by four pixels has its features between those of the other.
        moved = [F.pad(picture, (0, right, 0, down), mode="replicate")[:, :, down:, right:] for down, right in shifts]
        parts = [maps_of(model, x.contiguous(memory_format=torch.channels_last)) for x in moved]
        maps = [F.normalize(torch.cat(shifted), dim=1) for shifted in zip(*parts)]  # [4 or 1,C,h,w]
        if len(shifts) > 1:
            maps = [F.pixel_shuffle(x.permute(1, 0, 2, 3), 2).permute(1, 0, 2, 3) for x in maps]
        yield tuple(x[0] for x in maps)


def merge(maps: Maps, cls_share: float) -> Tensor:
    """Both branches to one unit feature [C,h,w]; the published `merge` at 0.5. Other features stay as they are."""
    if len(maps) == 1:
        return maps[0]
    color, cls = maps
    if cls_share in (0, 1):
        return cls if cls_share else color
    return torch.cat([cls * cls_share**0.5, color * (1 - cls_share) ** 0.5])


def first_labels(mask: np.ndarray, ids: Sequence[int], shape: tuple[int, int], how: str) -> Tensor:
    """The first mask [H,W] to soft labels [M,h,w]."""
    layers = torch.stack([torch.from_numpy(mask) == i for i in ids]).float()
    if how == "area":
        return F.interpolate(layers[None], size=shape, mode="area")[0]
    labels = resize(layers, shape)
    return F.one_hot(labels.argmax(0), len(ids)).permute(2, 0, 1).float() if how == "sharp" else labels


@torch.inference_mode()
def carry(features: Sequence[Tensor], first: Tensor, options: Options) -> list[Tensor]:
    """Labels [M,n*h,n*w] of each frame's features [C,h,w] from those of the first frame, n the subcells."""
    search = NeighbourPropagation(knn=options.knn, radius=options.radius, temperature=options.temperature)
    propagator = LabelPropagator(search, context_gaps(options.context, options.custom_interval))
    given = parts_of_cells(first, options.subcells)
    labels = (propagator.step(x, given if t == 0 else None)[0] for t, x in enumerate(features))
    return [map_of_parts(parts, options.subcells) for parts in labels]


def score_options(model: Network, sequence: EvaluationSequence, names: Sequence[str], *, size: tuple[int, int],
                  every: int = 1, score_every: int = 1, store: LabelStore | None = None,
                  cache: FeatureCache | None = None) -> list[dict]:
    """J and F of each option on one sequence [percent], with seconds a frame."""
    store, cache = store or LabelStore(None, ""), cache or FeatureCache(None, {})
    files = [frame.image for frame in sequence.frames][::every]
    frames = list(read_video(sequence))[::every]
    truths = [frame.mask for frame in frames]
    ids = sorted({0, *np.unique(truths[0]).tolist()})
    encoded: dict[tuple, Sequence[Tensor]] = {}
    carried: dict[Options, tuple[list[Tensor], float]] = {}

    def features(options: Options, mirrored: bool = False) -> Iterator[Tensor]:
        key = options.scale, options.stride, mirrored
        if key not in encoded:
            mirror = lambda frame: frame._replace(image=np.ascontiguousarray(frame.image[:, ::-1]))
            seen = [mirror(frame) for frame in frames] if mirrored else frames
            encoded[key] = cache.get(files, {"size": size, "scale": options.scale, "stride": options.stride,
                                             "mirrored": mirrored},
                                     lambda: (torch.cat(maps) for maps in encode(model, seen, options, size)))
        channels = [model.branch_channels] * 2 if isinstance(model, ColorNet) else [-1]
        for together in encoded[key]:
            maps = together.split(channels) if len(channels) > 1 else (together,)
            yield merge(maps, options.cls_share)

    def carry_all(options: Options) -> list[Tensor]:
        seen = list(features(options))
        n, (h, w) = options.subcells, seen[0].shape[1:]
        first = first_labels(truths[0], ids, (n * h, n * w), options.first)
        labels = carry(seen, first, options)
        if options.flip:
            mirrored = list(features(options, mirrored=True))
            labels = [(a + b.flip(2)) / 2 for a, b in zip(labels, carry(mirrored, first.flip(2), options))]
        if options.scales:
            larger, _ = labels_of(dataclasses.replace(options, scales=False, scale=options.scale * 4 / 3))
            labels = [(a + resize(b, a.shape[1:])) / 2 for a, b in zip(labels, larger)]
        if options.backward:
            labels = [(a + b) / 2 for a, b in zip(labels, carry(seen[::-1], labels[-1], options)[::-1])]
        return labels

    def labels_of(options: Options) -> tuple[list[Tensor], float]:
        if options not in carried:
            start = time.perf_counter()
            labels = store.get(options, lambda: carry_all(options))
            carried[options] = labels, (time.perf_counter() - start) / len(frames)
        return carried[options]

    chosen = range(0, len(frames), score_every)
    rows = []
    for name in names:
        options = options_of(name)
        labels, seconds = labels_of(options.carrying)
        start = time.perf_counter()
        masks = [to_pixels(model, labels[t], frames[t].image, options) for t in chosen]
        pixel_seconds = (time.perf_counter() - start) / len(masks)
        scores = evaluate_sequence([truths[t] for t in chosen], [np.array(ids, np.uint8)[mask] for mask in masks])
        J, F_ = (np.mean([statistics(row).mean for row in values]) * 100 for values in (scores.J, scores.F))
        rows.append({"option": name, "J": J, "F": F_, "carry": seconds, "pixels": pixel_seconds})
    return rows


@torch.inference_mode()
def to_pixels(model: Network, labels: Tensor, frame: np.ndarray, options: Options) -> np.ndarray:
    """Soft labels [M,h,w] to the argmax over them at each pixel [H,W]."""
    labels = weighed(interpolated(labels, options.subcells), stretch=options.stretch, background=options.background)
    if UPSAMPLING[options.upsample] is None:
        return upsampled_argmax(labels, frame.shape[:2]).numpy()
    make, guide = UPSAMPLING[options.upsample]
    return make(frame).argmax(labels, frame if guide is None else guide(model, frame)).numpy()


def sha256(file: str) -> str:
    """The digest of a file of weights, or the word that stands for none."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if Path(file).is_file() else file


def print_table(rows: Sequence[dict], models: Sequence[str], names: Sequence[str], sequences: Sequence[str]) -> None:
    """One line an option and model."""
    halves = sequences[::2], sequences[1::2]
    print(f"half A: {' '.join(halves[0])}; half B: {' '.join(halves[1])}")
    for model in models:
        found = {(row["option"], row["sequence"]): row for row in rows if row["model"] == model}
        print(f"\n| {model} | J&F A | J&F B | gain A | gain B | gain of all, ± standard error | carry s | pixels s |\n"
              "|---|---|---|---|---|---|---|---|")
        for name in names:
            of_sequences = [found[name, sequence] for sequence in sequences]
            scores = np.array([(row["J"] + row["F"]) / 2 for row in of_sequences])
            gain = scores - [(found["colornet", s]["J"] + found["colornet", s]["F"]) / 2 for s in sequences]
            seconds = [np.mean([row[part] for row in of_sequences]) for part in ("carry", "pixels")]
            print(f"| {name} | {scores[::2].mean():.1f} | {scores[1::2].mean():.1f} | {gain[::2].mean():+.1f} | "
                  f"{gain[1::2].mean():+.1f} | {gain.mean():+.1f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.1f} | "
                  f"{seconds[0]:.3f} | {seconds[1]:.3f} |")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", required=True, metavar="NAME=FILE")
    add("--list", default="filelists/davis16", help="labelled list, as infer_vos_dul.py --infer-list")
    add("--root", default="data", help="the data root, as DATASET.ROOT")
    add("--size", type=width_and_height, default=(864, 480), metavar="WxH")
    add("--options", nargs="+", default=list(OPTIONS), metavar="OPTION")
    add("--every", type=int, default=1, metavar="N")
    add("--score-every", type=int, default=1, metavar="N")
    add("--results", default="study.jsonl", type=Path)
    add("--labels", type=Path, metavar="FOLDER")
    add("--features", metavar="SPEC")
    add("--feature-weights", nargs="+", default=[], metavar="[NAME=]FILE")
    add("--cache", type=Path, metavar="FOLDER")
    return parser.parse_args()


def main() -> None:
    """Measure what is not yet in the results, and print the table."""
    args = parse_arguments()
    names = ["colornet", *(name for name in args.options if name != "colornet")]
    for name in names:
        options = options_of(name)
        if args.features and (options.cls_share != 0.5 or options.upsample.startswith("guide")):
            raise UserError(f"option {name} is of a ColorNet's branches, and --features is given; leave one out")
    models = dict(pair.split("=", 1) for pair in args.model)
    sequences = read_evaluation_list(find_list(args.list, args.root), args.root)
    setting = {"size": list(args.size), "every": args.every, "score_every": args.score_every,
               "features": args.features or "merge"}
    rows = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.is_file() else []
    rows = [row for row in rows if {"features": "merge", **row}.items() >= setting.items()]
    for model_name, path in models.items():
        model, files = load_model(path, "cpu"), {}
        if args.features:
            files = weight_files(args.features, args.feature_weights)
            model = load_features(args.features, model if needs_model(args.features) else None, files)
        key = {"features": args.features, **{name: sha256(file) for name, file in {"model": path, **files}.items()}}
        for sequence in sequences:
            have = {row["option"] for row in rows if (row["model"], row["sequence"]) == (model_name, sequence.name)}
            todo = [name for name in names if name not in have]
            store = LabelStore(args.labels, "{}-{}-{}x{}-{}".format(
                model_name + (f"-{folder_name(args.features)}" if args.features else ""), sequence.name, *args.size,
                args.every))
            for row in score_options(model, sequence, todo, size=args.size, every=args.every,
                                     score_every=args.score_every, store=store,
                                     cache=FeatureCache(args.cache, key)) if todo else ():
                rows.append({"model": model_name, "sequence": sequence.name, **setting, **row})
                with args.results.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
            print(f"{model_name} {sequence.name}: {len(todo)} measured", file=sys.stderr, flush=True)
    print_table(rows, list(models), names, [sequence.name for sequence in sequences])


if __name__ == "__main__":
    run_script(main)
