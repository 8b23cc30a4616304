"""Training clips and evaluation videos: from files to the tensors that the model and the losses take."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from datasets.clips import DrawnClips, StillClips, VideoClips, frame_gaps, reduction_for
from datasets.filelists import list_stills, locate_list, read_training_list, scan_videos
from datasets.inventory import index_videos, keep_index
from datasets.loader import Batch, BatchLoader, default_workers, read_batch
from datasets.training import MixedClips, TrainingClips
from datasets.views import ColorViews, DenseViews, ViewGeometry
from utils.config import DatasetSettings, Settings, TrainConfig
from utils.errors import UserError

__all__ = ["Batch", "BatchLoader", "build_adaptation_dataset", "build_loader",
           "build_train_dataset", "read_batch"]

logger = logging.getLogger(__name__)

TRAINING_LIST = "filelists/train_ytvos"


def build_train_dataset(settings: Settings, train_config: TrainConfig, *, coco: bool,
                        seed: int) -> TrainingClips | MixedClips:
    """Build the data that a configuration names: videos, with `coco` stills, or both by STILLS_SHARE.

    `UserError` where there is none.

    A sample `dataset[(epoch, index)]` holds, with T = video_len, S = CROP_SIZE and only what a switch asks for:
        color: `view_a`, `view_b` uint8 [T,3,S,S] RGB; `grid` float32 [T,S/8,S/8,2] from A's features to B's;
            `levels` uint8 [T,3,S,S] and their `values` float32 [3,256], the target; `contours` uint8 [T,S/2,S/16].
        dense: `view_1`, `view_2` uint8 [T,3,S,S]; `theta` float32 [2,3] from view 1's features to view 2's.
        clip: its name. failed: files that could not be decoded before this clip was taken.
    """
    options, length = settings.DATASET, train_config.video_len
    if coco and options.STILLS_SHARE:
        raise UserError("--coco trains on stills alone and DATASET.STILLS_SHARE on clips and stills; both are given, "
                        f"STILLS_SHARE is {options.STILLS_SHARE}; leave one out")
    parts = []
    if not coco:
        videos, summary = _build_video_clips(options, length)
        parts.append(TrainingClips(videos, build_recipes(options, train_config, turned=False), seed=seed,
                                   summary=summary))
    if coco or options.STILLS_SHARE:
        stills = StillClips(list_stills(options.ROOT, options.STILLS), length)
        parts.append(TrainingClips(stills, build_recipes(options, train_config, turned=True), seed=seed, summary={
            "source": str(Path(options.ROOT, options.STILLS)), "stills": len(stills.names)}))
    return parts[0] if len(parts) == 1 else MixedClips(*parts, share=options.STILLS_SHARE, seed=seed)


def build_adaptation_dataset(frames: Iterable[np.ndarray], total: int, settings: Settings,
                             train_config: TrainConfig, *, clips: int, seed: int) -> TrainingClips:
    """`clips` clips of one video as `build_train_dataset` makes them, from its `total` frames, uint8 RGB [H,W,3]."""
    options = settings.DATASET
    source = DrawnClips(frames, total, count=clips, length=train_config.video_len, gap=options.FRAME_GAP,
                        short_side=options.SMALLEST_RANGE[1] - 1, rng=np.random.default_rng(seed))
    return TrainingClips(source, build_recipes(options, train_config, turned=False), seed=seed, summary={})


def build_loader(dataset: TrainingClips | MixedClips, settings: Settings, *, seed: int,
                 device: torch.device) -> BatchLoader:
    """What makes the batches of an epoch, by TRAIN.BATCH_SIZE, CLIPS_PER_EPOCH and NUM_WORKERS."""
    workers = settings.TRAIN.NUM_WORKERS
    return BatchLoader(dataset, batch_size=settings.TRAIN.BATCH_SIZE, seed=seed, device=device,
                       clips_per_epoch=settings.TRAIN.CLIPS_PER_EPOCH,
                       workers=workers if workers >= 0 else default_workers())


def build_recipes(options: DatasetSettings, train_config: TrainConfig, *,
                  turned: bool) -> dict[str, ColorViews | DenseViews]:
    """What makes a clip's views for each branch that the configuration trains."""
    geometry = ViewGeometry(size=options.CROP_SIZE[0], short_range=options.SMALLEST_RANGE, random_crop=options.RND_CROP,
                            guided_flip=options.GUIDED_HFLIP,
                            zoom_range=options.RND_ZOOM_RANGE if options.RND_ZOOM else None)
    recipes: dict[str, ColorViews | DenseViews] = {"color": ColorViews(
        geometry, color_mode=train_config.color_mode, clip_lab=train_config.is_labclip, augment=train_config.is_aug,
        shadow=train_config.is_shadow, liquid=train_config.is_liquid, edge=train_config.is_edge,
        consistency=train_config.space_consistency, turned=turned)}
    if train_config.is_dul:
        recipes["dense"] = DenseViews(geometry)
    return recipes


def _build_video_clips(options: DatasetSettings, length: int) -> tuple[VideoClips, dict[str, str | int]]:
    """Find the videos, log what there is, keep those of at least `length` frames; and the summary of it."""
    path, root = locate_list(TRAINING_LIST, options.ROOT), options.ROOT
    logger.info("training list: %s", path or f"no {TRAINING_LIST}.txt, every folder of frames under {root} is a video")
    videos = read_training_list(path, root) if path else scan_videos(root, options.STILLS)
    if not videos:
        raise UserError(f"the data root {root} holds no frames; put YouTube-VOS into {root}/JPEGImages, any folders of "
                        "frames into the root, or decode video files with tools/prepare_data.py")
    index = index_videos(videos, length)
    if not path:
        keep_index(index, root)

    pairs = [(video, item["size"]) for video, item in zip(videos, index["items"]) if item["frames"] >= length]
    if not pairs:
        raise UserError(f"all {len(videos)} videos of {root} are shorter than video_len = {length} frames; "
                        "lower video_len or add longer videos")
    least_side = options.SMALLEST_RANGE[1] - 1  # no view shows a frame at more than that
    reductions = [reduction_for(video.frames[0], size, least_side) if options.REDUCED_DECODE else 1
                  for video, size in pairs]
    long = [video for video, _ in pairs]
    summary: dict[str, str | int] = {
        "source": str(path or root), "videos": len(long), "frames": sum(len(video.frames) for video in long),
        "too_short": len(videos) - len(long)}
    gaps = frame_gaps(long, options.FRAME_GAP, options.FRAME_GAP_SECONDS)
    return VideoClips(long, length, gaps=gaps, reductions=reductions), summary
