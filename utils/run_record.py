"""What a run says of itself beside its results, and which features made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from utils.values import parse_json, read_text

RECORD = "run.json"
DIGITS = 8  # of a digest, in words


class FeaturesUsed(NamedTuple):
    """The features that a folder of results was made with."""

    spec: str  # TEST.KEY
    model: str | None  # file of the ColorNet
    model_sha256: str | None
    weights: dict[str, str]  # of each other network its file's SHA-256, or "random"; empty where its package has them

    def __str__(self) -> str:
        files = [f"{Path(self.model or '').name} {(self.model_sha256 or '')[:DIGITS]}".strip(),
                 *(f"{name} {digest[:DIGITS]}" for name, digest in self.weights.items())]
        return f"{self.spec} ({', '.join(filter(None, files))})" if any(files) else self.spec


def read_record(folder: str | Path) -> dict[str, Any]:
    """What run.json in a folder says; nothing where there is none that can be read."""
    try:
        record = parse_json(read_text(Path(folder, RECORD)))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def features_used(results: str | Path) -> FeaturesUsed | None:
    """Which features made `results`, by its run.json; None where that says nothing of them."""
    record = read_record(results)
    try:
        method = record["method"]
        return FeaturesUsed(str(method["KEY"]), record.get("model"), method.get("model_sha256"),
                            {str(name): str(digest) for name, digest in method.get("feature_weights", {}).items()})
    except (KeyError, TypeError, AttributeError):
        return None
