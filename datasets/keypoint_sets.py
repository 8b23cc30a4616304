"""Data sets of keypoints in their published layout: the frames, and where the joints truly are.

    JHMDB   ROOT/splits/<class>_test_split1.txt             ROOT/Rename_Images/<class>/<video>
            ROOT/joint_positions/<class>/<video>/joint_positions.mat
    BADJA   ROOT/joint_annotations/<sequence>.json, which names frames and masks below ROOT
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.filelists import files_by_stem, natural
from datasets.points import Point, read_badja
from datasets.video_sets import chosen, read_all
from utils.errors import UserError, require_packages
from utils.names import NAME_RULE, is_name
from utils.pictures import read_size
from utils.values import read_text

# In the order of `pos_img`.
JHMDB_JOINTS = ("neck", "belly", "face", "right shoulder", "left shoulder", "right hip", "left hip", "right elbow",
                "left elbow", "right knee", "left knee", "right wrist", "left wrist", "right ankle", "left ankle")
BADJA_WITHOUT_FRAMES = ("cat_jump", "tiger")  # joints are published, frames are not


@dataclass(frozen=True)
class KeypointSequence:
    """A video and the true joints of some of its frames, which are numbered from 0.

    Attributes:
        name: of the files of results.
        folder: of the pictures.
        joints: by frame, the places of the joints that are visible there, (x, y) [pixels].
        masks: by frame, pictures in which what is not black is the animal (BADJA alone).
    """

    name: str
    folder: Path
    joints: dict[int, dict[str, tuple[float, float]]]
    masks: dict[int, Path] = field(default_factory=dict)

    @property
    def first(self) -> int:
        """The frame whose joints are given."""
        return min(self.joints)

    @property
    def scored(self) -> dict[int, dict[str, tuple[float, float]]]:
        """The joints of the later frames."""
        return {frame: joints for frame, joints in self.joints.items() if frame != self.first}

    @property
    def given(self) -> list[Point]:
        """The joints of the first frame."""
        return [Point(name, self.first, x, y) for name, (x, y) in self.joints[self.first].items()]


def read_jhmdb_set(root: str | Path, sequences: Sequence[str] = ()) -> list[KeypointSequence]:
    """The test videos of JHMDB's first split, or those of them that are named.

    Joints may lie outside the frames. `UserError` lists what is missing.
    """
    require_packages("reading JHMDB's MATLAB files", "scipy", requirements="requirements-tasks.txt")
    root = Path(root)
    classes = _jhmdb_videos(root)

    def read(name: str) -> KeypointSequence:
        folder = root / "Rename_Images" / classes[name] / name
        positions = _read_positions(root / "joint_positions" / classes[name] / name / "joint_positions.mat")
        frames = len(files_by_stem(folder))
        if frames < len(positions):
            raise UserError(f"{frames} frames in {folder}, and joints of {len(positions)}")
        return KeypointSequence(name, folder, {
            t: {joint: tuple(place) for joint, place in zip(JHMDB_JOINTS, places)}
            for t, places in enumerate(positions.tolist())})

    return read_all(chosen(sorted(classes, key=natural), sequences, f"{root}/splits"), read)


def read_badja_set(root: str | Path, sequences: Sequence[str] = ()) -> list[KeypointSequence]:
    """The sequences of BADJA that have frames, or those that are named. `UserError` lists what is missing."""
    root = Path(root)
    tables = files_by_stem(root / "joint_annotations", {".json"})
    if not tables:
        raise UserError(f"BADJA's folder has joint_annotations/<sequence>.json; {root} has none; give that folder")
    names = chosen(list(tables), sequences, f"{root}/joint_annotations")
    return read_all((name for name in names if sequences or name not in BADJA_WITHOUT_FRAMES),
                    lambda name: _badja_sequence(name, root, tables[name]))


def _jhmdb_videos(root: Path) -> dict[str, str]:
    """The test videos of the first split, each with its class."""
    classes: dict[str, str] = {}
    for listing in sorted(root.glob("splits/*_test_split1.txt")):
        try:
            lines = [line.split() for line in read_text(listing).splitlines() if line.strip()]
            parts = {file.removesuffix(".avi"): {"1": "training", "2": "test"}[part] for file, part in lines}
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"a line of JHMDB's splits is '<video>.avi <1: training, 2: test>'; {listing} has others "
                            f"({error!r:.80}); download splits.zip anew") from None
        test = [name for name, part in parts.items() if part == "test"]
        strange = [name for name in test if name in classes or not is_name(name)]
        if strange:
            raise UserError(f"each video has {NAME_RULE}, and one class; {listing} has {strange[0]!r:.80}; download "
                            "splits.zip anew")
        classes |= dict.fromkeys(test, listing.name.removesuffix("_test_split1.txt"))
    if not classes:
        raise UserError(f"JHMDB's test videos are read from splits/<class>_test_split1.txt; {root} has none; unpack "
                        "splits.zip, Rename_Images.tar.gz and joint_positions.zip there")
    return classes


def _read_positions(path: Path) -> np.ndarray:
    """JHMDB's `pos_img`, which counts pixels from 1, as [T,15,2]: (x, y) [pixels] from 0."""
    from scipy.io import loadmat  # optional
    try:
        positions = np.asarray(loadmat(path, variable_names=["pos_img"])["pos_img"], dtype=float)
    except Exception as error:  # a damaged file may raise anything there
        raise UserError(f"{path} is no file of JHMDB's joints ({error!r:.120})") from None
    if positions.ndim != 3 or positions.shape[:2] != (2, len(JHMDB_JOINTS)) or not np.isfinite(positions).all():
        raise UserError(f"pos_img is 2 x {len(JHMDB_JOINTS)} x frames, all of them numbers; {path} has "
                        f"{' x '.join(map(str, positions.shape))}")
    return positions.transpose(2, 1, 0) - 1


def _badja_sequence(name: str, root: Path, table: Path) -> KeypointSequence:
    annotated = read_badja(table)
    folder = root / annotated[0].image.parent
    files = files_by_stem(folder)
    stems = list(files)
    lacking = [str(path) for frame in annotated for path, there in
               ((root / frame.image, frame.image.stem in files), (root / frame.mask, (root / frame.mask).is_file()))
               if not there]
    if lacking:
        raise UserError(f"no {lacking[0]}" + f" and {len(lacking) - 1} other files" * (len(lacking) > 1))
    joints = {stems.index(frame.image.stem): frame.joints for frame in annotated}
    sequence = KeypointSequence(name, folder, joints, dict(zip(joints, (root / frame.mask for frame in annotated))))
    if not sequence.given:
        raise UserError(f"{table} has no visible joint in its first frame")
    width, height = read_size(files[stems[sequence.first]])
    outside = next((point for point in sequence.given if point.x > width or point.y > height), None)
    if outside:
        raise UserError(f"joints are given at the size of the original frames, DAVIS's Full-Resolution; {folder} has "
                        f"frames of {width}x{height}, and joint {outside.name} is at ({outside.x:g}, {outside.y:g})")
    return sequence
