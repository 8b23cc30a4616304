"""The two configuration files as typed, checked, immutable objects.

`configs/ytvos.yaml` and `data/configs/train_config_default_M.json` hold the published run and are the one source of
every default: another file states only what it changes. `python -m utils.config` prints each key with its value and
what is allowed.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from utils.config_values import build, flatten, parse_pairs, read_values, shown, type_hints
from utils.errors import UserError
from utils.feature_spec import FEATURES_RULE, parse_features
from utils.names import NAME_RULE, is_name

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_SETTINGS = REPOSITORY / "configs/ytvos.yaml"
DEFAULT_TRAIN_CONFIG = REPOSITORY / "data/configs/train_config_default_M.json"
SHIPPED_MODEL = REPOSITORY / "data/weights/colornet_S.pth"
PRESETS = {path.stem: path for path in sorted((REPOSITORY / "configs/presets").glob("*.yaml"))}

UPSAMPLING = ("bilinear", "bilateral")
RENAMED_KEYS = {"TEST.NORMALISE": "TEST.STRETCH"}


def _key(allowed: str, valid: Callable[[Any], Any] = lambda value: True) -> Any:
    """Declare a configuration key: what is allowed in words, and its test, which may raise ValueError as well."""
    return field(metadata={"allowed": allowed, "valid": valid})


def _one_of(*values: str) -> Any:
    return _key("one of " + ", ".join(values), lambda value: value in values)


def _at_least(least: float) -> Any:
    return _key(f"a number of at least {least}", lambda value: value >= least)


def _positive() -> Any:
    return _key("a number above 0", lambda value: value > 0)


def _folder(where: str) -> Any:
    return _key(where, lambda value: value.strip() and "\0" not in value)


def _switch() -> Any:
    return _key("true or false")


def _range_within(low: float, high: float) -> Any:
    return _key(f"[lowest, highest] with {low} <= lowest < highest <= {high}",
                lambda value: low <= value[0] < value[1] <= high)


@dataclass(frozen=True)
class TrainConfig:
    """What is trained: the JSON file's 16 keys (names fixed by users' files, the typo included)."""

    exp: str = _key(NAME_RULE, is_name)
    first_kernal_size: int = _key("an odd whole number above 0", lambda value: value > 0 and value % 2 == 1)
    color_mode: str = _one_of("LAB", "RGB", "AB")
    is_dul: bool = _switch()
    is_aug: bool = _switch()
    is_shadow: bool = _switch()
    is_liquid: bool = _switch()
    is_edge: bool = _switch()
    is_neg: bool = _switch()
    space_consistency: bool = _switch()
    is_labclip: bool = _switch()
    ohem_range: tuple[float, float] = _range_within(0, 1)
    model_size: str = _one_of("L", "M", "S")
    TEMP: float = _positive()
    is_cos_lr: bool = _switch()
    video_len: int = _at_least(2)


@dataclass(frozen=True)
class DatasetSettings:
    """Where the data is and the geometry of its views (DESIGN section 5)."""

    ROOT: str = _folder("a folder")
    STILLS: str = _folder("a folder, relative to ROOT or absolute")
    STILLS_SHARE: float = _key("a number from 0 (none) to below 1", lambda value: 0 <= value < 1)
    CROP_SIZE: tuple[int, int] = _key("[width, height], equal, positive multiples of 8",
                                      lambda value: value[0] == value[1] > 0 and value[0] % 8 == 0)
    SMALLEST_RANGE: tuple[int, int] = _range_within(1, 100_000)
    RND_CROP: bool = _switch()
    RND_ZOOM: bool = _switch()
    RND_ZOOM_RANGE: tuple[float, float] = _range_within(0.01, 1)
    GUIDED_HFLIP: bool = _switch()
    FRAME_GAP: int = _at_least(1)
    FRAME_GAP_SECONDS: float = _at_least(0)
    REDUCED_DECODE: bool = _switch()


@dataclass(frozen=True)
class TrainSettings:
    """The loop: how much at a time, how long, how often a checkpoint."""

    BATCH_SIZE: int = _at_least(1)
    NUM_EPOCHS: int = _at_least(1)
    CLIPS_PER_EPOCH: int = _at_least(0)
    NUM_WORKERS: int = _key("a number of processes, 0 for none, -1 for as many as the machine has cores, at most 12",
                            lambda value: value >= -1)
    SAVE_EVERY_STEPS: int = _at_least(0)
    EMA: float = _key("a number from 0 (off) to below 1: the decay per step", lambda value: 0 <= value < 1)
    VALIDATE_EVERY: int = _at_least(1)
    KEEP_BEST: int = _at_least(0)


@dataclass(frozen=True)
class ModelSettings:
    """Optimiser, heads and the dense loss (DESIGN sections 4, 6 and 7)."""

    LR: float = _positive()
    BETAS: tuple[float, float] = _key("two numbers in [0, 1)", lambda value: all(0 <= v < 1 for v in value))
    EPS: float = _positive()
    WEIGHT_DECAY: float = _at_least(0)
    FEATURE_DIM: int = _at_least(1)
    GRID_SIZE: int = _at_least(1)
    GRID_SIZE_REF: int = _at_least(1)
    CE_REF: float = _at_least(0)
    DUL_WEIGHT: float = _at_least(0)
    DUL_TEMP: float = _positive()


@dataclass(frozen=True)
class TestSettings:
    """Label propagation (DESIGN section 8)."""

    __test__ = False  # the name is the YAML section's; it is no test case
    KNN: int = _at_least(1)
    CXT_SIZE: int = _at_least(1)
    RADIUS: float = _positive()
    WINDOW: str = _one_of("circle", "square")
    RADIUS_ON_FIRST: bool = _switch()
    FIRST_IN_RECENT: str = _one_of("repeat", "once", "never")
    TEMP: float = _positive()
    KEY: str = _key(FEATURES_RULE, parse_features)
    CUSTOM_INTERVAL: bool = _switch()
    INFER_WH: tuple[int, int] = _key("[width, height] in pixels, positive multiples of 8 (--infer_wh), or [0, 0]: by "
                                     "INPUT_SIZE", lambda value: value == (0, 0) or all(v > 0 and v % 8 == 0
                                                                                        for v in value))
    INPUT_SIZE: int = _key("a number of at least 16, or 0: frames as they are", lambda value: value == 0 or value >= 16)
    SIZE_MULTIPLES: tuple[int, int] = _key("[of the short side, of the long side], both above 0",
                                           lambda value: min(value) > 0)
    SIZE_ROUNDING: str = _one_of("up", "down", "nearest")
    REDUCE: str = _one_of("bilinear", "nearest")
    ALIGN_CORNERS: bool = _switch()
    SUBCELLS: int = _at_least(1)
    UPSAMPLE: str = _one_of(*UPSAMPLING)
    MIN_MAX: bool = _switch()
    STRETCH: bool = _switch()
    BACKGROUND: float = _positive()


@dataclass(frozen=True)
class LogSettings:
    """Steps between two log records; 1 logs every step."""

    ITER_TRAIN: int = _at_least(1)


@dataclass(frozen=True)
class TensorBoardSettings:
    """Pictures: their size [width, height] in pixels, and the steps between two sets of them (0: none)."""

    IM_SIZE: tuple[int, int] = _key("[width, height], both above 0", lambda value: min(value) > 0)
    ITER_IMAGES: int = _at_least(0)


@dataclass(frozen=True)
class Settings:
    """How it is run: the YAML file."""

    DATASET: DatasetSettings
    TRAIN: TrainSettings
    MODEL: ModelSettings
    TEST: TestSettings
    LOG: LogSettings
    TB: TensorBoardSettings


def load_train_config(path: str | Path = DEFAULT_TRAIN_CONFIG, exp: str | None = None) -> TrainConfig:
    """Read a training configuration; keys it leaves out come from its `base` (a path relative to it) or the default.

    `exp`, what `--exp` says, replaces the file's and follows the same rule.
    """
    config = parse_train_config(_read_train_json(Path(path), seen=()), str(path))
    return config if exp is None else parse_train_config({**asdict(config), "exp": exp}, "--exp")


def parse_train_config(values: Mapping[str, Any], origin: str) -> TrainConfig:
    """Check the 16 values of a file or a checkpoint; `UserError` names `origin`, the key, its value and the rule."""
    return build(TrainConfig, values, origin, prefix="")


def load_settings(path: str | Path | None = None, overrides: Sequence[str] = (),
                  flags: Mapping[str, tuple[str, Any]] | None = None, *, base: Mapping[str, Any] | None = None,
                  preset: str | None = None, instead: Mapping[str, Any] | None = None) -> Settings:
    """Read the YAML settings. Each wins over those before it: defaults, preset, `--cfg`, `--set` and flags.

    Args:
        path: `--cfg`, states only what it changes; None and, but for a `base`, the file of defaults: nothing.
        overrides: the word list of `--set K V [K V ...]`.
        flags: key to (flag name, plain value or None where the flag was not given); a flag and a `--set` of the same
            key that disagree are a `UserError`.
        base: sections of keys, as a checkpoint holds them, that take the defaults' place.
        preset: one of `PRESETS`.
        instead: other defaults for the input at hand; they win over a preset as well, and over nothing else.
    """
    protocol = _read_settings(PRESETS[preset]) if preset else {}
    stated = path if base or os.path.realpath(path or DEFAULT_SETTINGS) != str(DEFAULT_SETTINGS) else None
    own = _by_present_names(_read_settings(stated)) if stated else {}
    changed = [f"{key} {protocol[key]} -> {value}" for key, value in own.items() if protocol.get(key, value) != value]
    if changed:
        logger.info("%s wins over preset %s: %s", path, preset, ", ".join(changed))
    saved = _by_present_names(flatten(base or {}, "the checkpoint"))
    values = {**_default_settings(), **saved, **protocol, **(instead or {}), **own}
    pairs = parse_pairs([RENAMED_KEYS.get(word, word) for word in overrides], _types())
    for key, (flag, value) in (flags or {}).items():
        if value is None:
            continue
        if key in pairs and pairs[key] != value:
            raise UserError(f"{flag} and --set {key} are the same setting and must agree; "
                            f"they are {value} and {pairs[key]}; give one of them")
        pairs[key] = value
    origin = path or ("the checkpoint" if base else DEFAULT_SETTINGS)
    return _nest(values | _by_present_names(pairs), f"{origin} and --set")


def _read_settings(path: str | Path) -> dict[str, Any]:
    values = read_values(Path(path), "YAML", name="settings file", option="--cfg")
    return flatten({} if values is None else values, str(path))


@functools.cache
def _default_settings() -> Mapping[str, Any]:
    return _read_settings(DEFAULT_SETTINGS)


def _by_present_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by today's names: the checkpoints, files and scripts of users have the former ones, too."""
    return {RENAMED_KEYS.get(key, key): "bilateral" if (key, value) == ("TEST.UPSAMPLE", "edge") else value
            for key, value in values.items()}


def resolved(config: Any) -> dict[str, Any]:
    """A configuration as plain lists, dicts and values: what goes into logs and checkpoints."""
    return json.loads(json.dumps(asdict(config)))


def _read_train_json(path: Path, seen: tuple[str, ...]) -> dict[str, Any]:
    values = read_values(path, "JSON", name="training config",
                         option=f"--train_config (the default is {DEFAULT_TRAIN_CONFIG.name})")
    if not isinstance(values, dict):
        raise UserError(f"a training config is one JSON object; {path} holds a {type(values).__name__}")
    real, base = os.path.realpath(path), values.pop("base", None)
    if real in seen:
        raise UserError(f"a training config's base may not lead back to itself; {path} does; change its key base")
    if base is not None and (not isinstance(base, str) or "\0" in base):
        raise UserError(f"a training config's base is the path of another; in {path} it is {shown(base)}")
    if base is None and real == os.path.realpath(DEFAULT_TRAIN_CONFIG):
        return values
    return _read_train_json(path.parent / (DEFAULT_TRAIN_CONFIG if base is None else base), (*seen, real)) | values


@functools.cache
def _types() -> Mapping[str, Any]:
    """Every key of the YAML file with its type."""
    return {f"{section}.{key}": hint for section, cls in type_hints(Settings).items()
            for key, hint in type_hints(cls).items()}


def _nest(values: Mapping[str, Any], origin: str) -> Settings:
    sections = type_hints(Settings)
    unknown = sorted(set(values) - set(_types()))
    if unknown:
        raise UserError(f"unknown settings {', '.join(unknown)} in {origin}: this software does not use them; "
                        f"remove them or correct their names (python -m utils.config lists every key)")
    return Settings(**{section: build(cls, {key.split(".", 1)[1]: value for key, value in values.items()
                                             if key.startswith(section + ".")}, origin, prefix=section + ".")
                       for section, cls in sections.items()})


def _describe() -> None:
    for title, config in (("--train_config (JSON)", load_train_config()), ("--cfg (YAML) and --set", load_settings())):
        print(title)
        for f in fields(config):
            value = getattr(config, f.name)
            rows = [(f"{f.name}.{g.name}", getattr(value, g.name), g) for g in fields(value)] \
                if is_dataclass(value) else [(f.name, value, f)]
            for name, default, row in rows:
                print(f"  {name:24} {json.dumps(default):16} {row.metadata['allowed']}")


if __name__ == "__main__":
    _describe()
