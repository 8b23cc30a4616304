"""The layout is one that a reader can trust: imports point one way and no function needs scrolling."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
METHOD = {"models", "datasets", "losses"}
MAY_IMPORT = {"utils": {"utils"}, **{part: {part, "utils"} for part in METHOD},
              **{wing: {wing, "utils"} | METHOD for wing in ("inference", "evaluation")},
              "training": {"training", "evaluation", "utils"} | METHOD,
              "annotation": {"annotation", "inference", "utils"} | METHOD}
OURS = {*MAY_IMPORT, "tools", "benchmarks", "tests"}
LONGEST_FUNCTION = 60  # lines
LONGEST_FILE = 350
PRODUCT = sorted([*ROOT.glob("*.py"),
                  *(path for layer in (*MAY_IMPORT, "tools") for path in (ROOT / layer).rglob("*.py"))])


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    layer = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT.get(layer, {*MAY_IMPORT})  # a command is started, never imported
    assert imported(ast.parse(path.read_text())) & OURS <= allowed


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_a_screen(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= LONGEST_FUNCTION] == []


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_short(path):
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


@pytest.mark.parametrize("layer", sorted(METHOD))
def test_only_builders_see_the_config(layer):
    tree = ast.Module([node for path in (ROOT / layer).rglob("*.py") for node in ast.parse(path.read_text()).body], [])
    takers = [f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)
              and {"settings", "train_config"} & {a.arg for a in (*f.args.args, *f.args.kwonlyargs)}]
    assert [name for name in takers if not name.startswith("build_")] == []


def test_pictures_are_read_by_one_reader():
    """Other calls of decoders would open formats, sizes and orientations by rules of their own."""
    calls = {str(path.relative_to(ROOT)): ast.unparse(node.func) for path in PRODUCT
             for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
             and ast.unparse(node.func) in ("Image.open", "cv2.imread", "cv2.imdecode")}
    # LabelMe's files hold small PNGs of their own.
    assert calls.keys() <= {"utils/pictures.py", "datasets/mask_annotations.py"}, calls
