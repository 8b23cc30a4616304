"""Make a model file to hand on: weights in half precision, beside what made them and what they score.

    python tools/publish_model.py snapshots/my_run/final.pth --out my_model.pth \
        --source "40 clips of my own" --score output/merge_vos/results-val.json

The optimiser's state is left out, and paths of this machine are replaced by --source. `python -m utils.checkpoint`
prints what a file says of itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the repository, when started as a file

from models import load_model
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import UserError, run_script
from utils.files import refuse_existing
from utils.run_record import RECORD
from utils.values import parse_json, read_text


def main(argv: Sequence[str] | None = None) -> None:
    """Read, reduce, write, and load once what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="final.pth of a training run")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--source", required=True, help="in words, what it was trained on and under which licences")
    parser.add_argument("--score", type=Path, nargs="*", default=[], metavar="RESULTS",
                        help="results-val.json files of the evaluation command, their run.json beside them")
    parser.add_argument("--overwrite", action="store_true", help="replace --out")
    args = parser.parse_args(argv)
    refuse_existing(args.out, args.overwrite)
    contents = read_checkpoint(args.model)
    provenance, settings, config = (contents.get(key) for key in ("provenance", "settings", "train_config"))
    if not (isinstance(provenance, dict) and isinstance(provenance.get("data"), dict)
            and isinstance(settings, dict) and isinstance(settings.get("DATASET"), dict) and isinstance(config, dict)):
        raise UserError(f"{args.model} does not say what made it; give a file that the training command wrote")
    scores = [read_score(path) for path in args.score]
    save_checkpoint(args.out, published(contents, args.source, scores))
    load_model(args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


def published(contents: dict[str, Any], source: str, scores: list[dict[str, Any]]) -> dict[str, Any]:
    """The contents of the published file; floating-point tensors become float16."""
    settings, made = contents["settings"], contents["provenance"]
    made = {key: Path(value).name if key == "init" and value else value for key, value in made.items()
            if key != "validate"}
    return {"model": {name: tensor.half() if tensor.is_floating_point() else tensor
                      for name, tensor in contents["model"].items()},
            "train_config": contents["train_config"],
            "settings": {**settings, "DATASET": {**settings["DATASET"], "ROOT": source, "STILLS": source}},
            "provenance": {**made, "data": {**made["data"], "source": source}},
            "scores": scores}


def read_score(path: Path) -> dict[str, Any]:
    """The means of an evaluation, in [0,1], and the method that made its masks; `UserError` for another file."""
    try:
        means, method = (parse_json(read_text(file))[key] for file, key in
                         ((path, "global"), (path.parent / RECORD, "method")))
        return {**{name: float(means[f"{name}-Mean"]) for name in ("J&F", "J", "F")},
                "method": {key: value for key, value in method.items() if key != "model_sha256"}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--score takes results-val.json files with run.json beside them; {path} is none ({error!r}); "
                        "run evaluation_method.py on the folder of masks first") from error


if __name__ == "__main__":
    run_script(main)
