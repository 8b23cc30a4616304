"""The network against golden outputs, the table of sizes, and released files."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models import load_model
from models.colornet import ColorNet
from tests.helpers import GOLDEN, golden_json, golden_model, released_state
from utils.config import load_train_config, resolved
from utils.errors import UserError

MODES = {"color": False, "color_dul": True}


def build(size, has_global=True, kernel=3):
    return ColorNet(size=size, has_global=has_global, stem_kernel=kernel, feature_dim=128).eval()


@pytest.mark.parametrize("size, mode, kernel", [("S", "color_dul", 3), ("S", "color_dul", 7), ("S", "color", 3),
                                                ("M", "color_dul", 3), ("L", "color", 3)])
def test_outputs_equal_golden(size, mode, kernel):
    golden = np.load(GOLDEN / "model_forward.npz")
    frames = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 3, 64, 96)).astype(np.float32))
    with torch.no_grad():
        features = golden_model(size, MODES[mode], kernel)(frames)
    compared = 0
    for output, value in features._asdict().items():
        key = f"{size}_{mode}_k{kernel}/{output}"
        if key in golden:
            value = value if size == "S" else value[:1, :, ::4, ::4]
            torch.testing.assert_close(value, torch.from_numpy(golden[key]), rtol=0, atol=1e-5)
            compared += 1
    assert compared == (4 if MODES[mode] else 2)


@pytest.mark.parametrize("kind, shapes", golden_json("state_dict_keys.json").items())
def test_state_dict_has_the_released_names(kind, shapes):
    size, mode = kind.split("_", 1)
    with torch.device("meta"):
        model = build(size, MODES[mode])
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    unused = {} if MODES[mode] else {name: shape for name, shape in shapes.items() if name.startswith("query_cls.")}
    assert ours | unused == shapes


@pytest.mark.parametrize("size, has_global, gmac, parameters", [("L", False, 12.24, 11.50), ("M", True, 15.16, 14.55),
                                                                ("S", True, 4.26, 4.04)])
def test_sizes_equal_the_table(size, has_global, gmac, parameters):
    multiplies = []

    def count(module, inputs, output):
        per_output = module.in_channels * module.kernel_size[0] * module.kernel_size[1]
        multiplies.append(output.numel() * per_output)

    with torch.device("meta"), torch.no_grad():
        model = build(size, has_global)
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(count)
        model(torch.zeros(1, 3, 256, 256))
    assert sum(multiplies) / 1e9 == pytest.approx(gmac, abs=0.005)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(parameters, abs=0.005)


def test_merge_is_the_normalised_concatenation_of_cls_and_color():
    model, frames = build("S"), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        features = model(frames)
        merge = torch.nn.functional.normalize(torch.cat([features.cls, features.color], dim=1), dim=1)
        torch.testing.assert_close(model.embed(frames, "merge"), merge)
        torch.testing.assert_close(model.embed(frames, "color"), features.color)
        torch.testing.assert_close(model.embed(frames, "cls"), features.cls)


def released_file(path, kind, state=None, **config):
    state = released_state(kind) if state is None else state
    train_config = resolved(load_train_config()) | {"model_size": kind[0], "is_dul": MODES[kind[2:]]} | config
    torch.save({"model": state, "train_config": train_config}, path)
    return path


@pytest.mark.parametrize("kind", ["S_color", "S_color_dul", "L_color"])
@pytest.mark.parametrize("counters", [False, True])
def test_released_files_load(tmp_path, kind, counters):
    shapes = golden_json("state_dict_keys.json")[kind]
    extra = {name: torch.tensor(3) for name in shapes if name.endswith("num_batches_tracked")} if counters else {}
    state = released_state(kind) | extra
    path, random = released_file(tmp_path / "model.pkl", kind, state), torch.get_rng_state()
    model = load_model(path)
    assert not model.training and torch.equal(torch.get_rng_state(), random), "no weights are drawn"
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state.get(name, torch.tensor(0))), name


@pytest.mark.parametrize("change, words", [
    (lambda s: {k: v for k, v in s.items() if not k.startswith("layer3")}, ("lacks layer3", "(25)")),
    (lambda s: s | {"layer9.weight": torch.zeros(1)}, ("unknown layer9.weight",)),
    (lambda s: s | {"bn1.weight": torch.zeros(7)}, ("other shapes for bn1.weight",)),
    (lambda s: s | {"bn1.weight": "text"}, ("not",)),
    (lambda s: s | {"query_color.3.weight": torch.tensor(1.0)}, ("other shapes for query_color.3.weight",)),
    (lambda s: s | {"query_color.3.weight": torch.zeros(10**9, 0, 1, 1)}, ("other shapes for query_cls.3.bias",)),
    (lambda s: s | {"bn1.weight": torch.ones(32, dtype=torch.int64)}, ("another kind for bn1.weight",)),
    (lambda s: s | {"bn1.num_batches_tracked": torch.tensor(1.5)}, ("another kind for bn1.num_batches_tracked",)),
    (lambda s: s | {"bn1.running_var": -torch.ones(32)}, ("negative variances in bn1.running_var",))])
def test_other_networks_are_refused(tmp_path, change, words):
    path = released_file(tmp_path / "model.pkl", "S_color_dul", change(released_state("S_color_dul")))
    with pytest.raises(UserError) as error:
        load_model(path)
    assert all(word in str(error.value) for word in ("model.pkl", *words)), error.value


def test_a_model_of_another_size_is_refused(tmp_path):
    with pytest.raises(UserError, match="size M"):
        load_model(released_file(tmp_path / "model.pkl", "S_color_dul", model_size="M"))


def test_half_precision_files_load_as_float32(tmp_path):
    state = {name: tensor.half() for name, tensor in released_state("S_color").items()}
    model = load_model(released_file(tmp_path / "model.pkl", "S_color", state))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("branch", ["color", "cls"])
def test_a_pass_for_one_branch_gives_its_outputs_and_counts_the_statistics_of_the_whole_trunk(branch):
    torch.manual_seed(0)
    model, frames = build("S").train(), torch.randn(2, 3, 32, 32)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    both, after_both = getattr(model(frames), branch), {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    alone = model(frames, local=branch == "color", dense=branch == "cls")
    torch.testing.assert_close(getattr(alone, branch), both, rtol=0, atol=1e-5)
    for name in ("layer4.1.bn2.running_mean", "layer4.1.bn2.running_var"):
        torch.testing.assert_close(model.state_dict()[name], after_both[name])
    assert model.state_dict()["layer4.1.bn2.num_batches_tracked"] == 1
