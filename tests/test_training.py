"""Every switch of the training command has its effect, and what it writes says what happened."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import infer_vos_dul
import trainColorNetDUL_benchmark as training
from datasets import Batch
from datasets.synthetic import make_clip
from evaluation.davis_evaluation import Protocol, davis_ground_truth, evaluate_folders
from losses.color import attend_by_products, attend_fused
from losses.objective import Losses, refuse_non_finite
from models.colornet import ColorNet
from models.resnet import BasicBlock
from tests.training_helpers import arguments, checkpoint, differing, make_data, records
from training.checkpointing import checkpoint_activations
from training.schedule import learning_rate
from training.state import Progress, TrainingState
from training.step import TrainingStep, check_parts
from utils.errors import UserError
from utils.overlay import write_jpeg
from utils.version import VERSION

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("restored_process")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = make_data(tmp_path_factory.mktemp("training") / "data")
    rng = np.random.default_rng(1)
    for number in range(6):
        write_jpeg(root / f"COCO/train2017/{number}.jpg", make_clip(rng, frames=1, size=(80, 64), objects=1).frames[0])
    return root


@pytest.fixture(scope="module")
def train(data):
    def run(folder, *options, config=None, data=data, **settings):
        """Train one epoch of three steps, if nothing else is said; the status."""
        return training.main(arguments(folder, *options, config=config, data=data,
                                       **{"TRAIN__NUM_EPOCHS": 1} | settings))
    return run


@pytest.fixture(scope="module")
def plain(train, tmp_path_factory):
    """The folder of a run with the settings that the others change."""
    folder = tmp_path_factory.mktemp("plain")
    train(folder)
    return folder


def weights(folder, name="final.pth", exp="tiny"):
    return checkpoint(folder, name, exp)["model"]


@pytest.mark.parametrize("config", [{"first_kernal_size": 7}, {"model_size": "M"}, {"is_dul": False}, {"TEMP": 5},
                                    {"is_cos_lr": False}, {"video_len": 3}, {"is_neg": False},
                                    {"color_mode": "RGB"}, {"is_edge": False}, {"space_consistency": False}],
                         ids=str)
def test_keys_of_the_training_config_change_the_model(train, plain, tmp_path, config):
    train(tmp_path, config=config)
    assert_other_model(weights(plain), weights(tmp_path))
    assert checkpoint(tmp_path)["train_config"] == checkpoint(plain)["train_config"] | config


@pytest.mark.parametrize("settings", [
    {"MODEL__LR": 2e-3}, {"MODEL__BETAS": [0.5, 0.95]}, {"MODEL__EPS": 1e-3}, {"MODEL__WEIGHT_DECAY": 0.5},
    {"MODEL__FEATURE_DIM": 64}, {"TRAIN__BATCH_SIZE": 4}, {"TRAIN__NUM_EPOCHS": 2}], ids=str)
def test_settings_change_the_model(train, plain, tmp_path, settings):
    train(tmp_path, **settings)
    assert_other_model(weights(plain), weights(tmp_path))


@pytest.mark.parametrize("options", [["--seed", 5], ["--coco"], ["--precision", "bf16"]], ids=str)
def test_options_change_the_model(train, plain, tmp_path, options):
    train(tmp_path, *options)
    assert_other_model(weights(plain), weights(tmp_path))
    assert all(np.isfinite(record["loss/total"]) for record in records(tmp_path))


def assert_other_model(a, b):
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in (a, b)]
    assert shapes[0] != shapes[1] or len(differing(a, b)) > len(a) / 2


@pytest.mark.parametrize("options, settings", [
    ([], {}), (["--checkpoint-activations"], {}), (["--validate", "filelists/val"], {"TEST__INFER_WH": [80, 64]}),
    ([], {"TRAIN__NUM_WORKERS": 2}), ([], {"LOG__ITER_TRAIN": 2, "TB__ITER_IMAGES": 1, "TRAIN__EMA": 0.5,
                                           "TRAIN__SAVE_EVERY_STEPS": 2})], ids=str)
def test_what_only_serves_speed_or_sight_leaves_the_weights(train, plain, tmp_path, options, settings):
    train(tmp_path, *options, **settings)
    names = ("epoch_001.pth", "final.pth")  # the first with the counters of batches
    assert [differing(weights(plain, name), weights(tmp_path, name)) for name in names] == [[], []]


def test_each_step_is_logged_with_its_terms(plain):
    logged = records(plain)
    assert [record["step"] for record in logged] == [1, 2, 3]
    for record in logged:
        assert record.keys() == {"step", "epoch", "loss/total", "loss/color", "loss/consistency", "loss/dense", "lr",
                                 "clips_per_second", "data_wait", "time_left", "failed_clips"}
        assert record["loss/total"] == pytest.approx(
            record["loss/color"] + record["loss/consistency"] + 0.01 * record["loss/dense"], rel=1e-5)
        assert record["epoch"] == 1 and record["clips_per_second"] > 0 and 0 <= record["data_wait"] <= 1
    assert logged[0]["time_left"] > 0 and logged[-1]["time_left"] == 0, "nothing is left after the last of all steps"
    config = json.loads((plain / "logs/tiny/config.json").read_text())
    assert config["train_config"]["model_size"] == "S" and config["settings"]["MODEL"]["LR"] == 1e-3
    assert config["seed"] == 777


def test_log_interval(train, tmp_path):
    train(tmp_path, LOG__ITER_TRAIN=2)
    assert [record["step"] for record in records(tmp_path)] == [2]


@pytest.mark.parametrize("cosine", [True, False])
def test_every_epoch_has_the_rate_of_the_schedule(train, tmp_path, cosine):
    train(tmp_path, config={"is_cos_lr": cosine}, TRAIN__NUM_EPOCHS=3)
    expected = [learning_rate(epoch, base=1e-3, epochs=3, cosine=cosine) for epoch in (1, 1, 1, 2, 2, 2, 3, 3, 3)]
    assert [record["lr"] for record in records(tmp_path)] == expected
    assert checkpoint(tmp_path, "last.pth")["training"]["optimiser"]["param_groups"][0]["lr"] == expected[-1]


def test_pictures(train, tmp_path):
    train(tmp_path, TB__ITER_IMAGES=2, TB__IM_SIZE=[30, 20])
    events = EventAccumulator(str(tmp_path / "logs/tiny"), size_guidance={"images": 0}).Reload()
    assert {f"views/{name}" for name in ("view a", "view b", "view a warped to b", "edge weight", "target",
                                         "target rebuilt from the frame before", "dense view 1", "dense view 2")} == \
        set(events.Tags()["images"])
    pictures = events.Images("views/target")
    assert [picture.step for picture in pictures] == [1, 3]
    assert (pictures[0].width, pictures[0].height) == (2 * 30, 20)
    assert [scalar.step for scalar in events.Scalars("loss/color")] == [1, 2, 3]


def test_experiment_is_named_by_the_config_or_the_option(train, tmp_path, plain):
    train(tmp_path, "--exp", "other", config={"exp": "third"})
    assert (tmp_path / "snapshots/other/final.pth").exists() and (tmp_path / "logs/other/metrics.jsonl").exists()
    assert not (tmp_path / "snapshots/third").exists()
    assert (plain / "snapshots/tiny/final.pth").exists()


def test_checkpoints_say_what_made_them(plain, data):
    made = checkpoint(plain)["provenance"]
    assert made["epoch"] == 1 and made["step"] == 3 and made["seed"] == 777 and made["processes"] == 1
    assert made["data"]["videos"] == 6 and made["data"]["frames"] == 18 and made["data"]["source"] == str(data)
    assert made["versions"].items() >= {"torch": torch.__version__, "colornet": VERSION}.items()
    assert made["averaged_epochs"] == [1]
    assert checkpoint(plain)["settings"]["TRAIN"]["BATCH_SIZE"] == 2
    assert checkpoint(plain, "epoch_001.pth")["provenance"]["epoch"] == 1


def test_running_average_is_written(train, tmp_path, plain):
    train(tmp_path, TRAIN__EMA=0.5)
    average, last, start = (weights(tmp_path, "final_ema.pth"), weights(tmp_path, "epoch_001.pth"), 1.0)
    assert not (plain / "snapshots/tiny/final_ema.pth").exists()
    name = "bn1.weight"  # starts at 1 and moves a little each step: the average lies in between
    moved = last[name] - start
    assert ((average[name] - start) / moved).mean() < 0.9 and len(differing(average, weights(tmp_path))) > 50


def test_loss_scaling_belongs_to_fp16(train, plain, tmp_path):
    train(tmp_path, "--precision", "fp16")
    assert_other_model(weights(plain), weights(tmp_path))
    assert all(np.isfinite(record["loss/total"]) for record in records(tmp_path))
    assert checkpoint(tmp_path, "last.pth")["training"]["scaler"]["scale"] > 1
    assert checkpoint(plain, "last.pth")["training"]["scaler"] == {}


def test_accumulated_gradients_are_the_mean_of_the_parts():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    state = stub_state(model)
    objective = lambda model, views, generator: Losses((model.weight * views["color"]["x"].mean()).sum(),
                                                       *[torch.zeros(())] * 3)
    step = TrainingStep(state, objective, precision="fp32", parts=2, seed=0)
    losses = step(Batch({"color": {"x": torch.tensor([1.0, 2, 3, 6])}}, list("abcd"), 0))
    assert float(losses.total) == 3.0 and model.weight.item() == pytest.approx(1 - 0.1 * 3)


def stub_state(model):
    return TrainingState(model, torch.optim.SGD(model.parameters(), lr=0.1),
                         torch.amp.GradScaler("cpu", enabled=False), None, {}, Progress())


@pytest.mark.parametrize("batch, parts, is_neg, words", [
    (2, 3, True, "--accumulate must divide"), (3, 1, True, "it is 3 .*is_neg"), (4, 4, True, "it is 1 .*is_neg"),
    (6, 2, True, "it is 3 .*is_neg"), (4, 2, True, None), (3, 1, False, None), (2, 2, False, None)])
def test_every_clip_has_negatives_and_parts_are_even(train, tmp_path, batch, parts, is_neg, words):
    if words is None:
        return check_parts(batch, parts, negatives=is_neg)
    with pytest.raises(UserError, match=words):
        train(tmp_path, "--accumulate", parts, config={"is_neg": is_neg}, TRAIN__BATCH_SIZE=batch)
    assert not (tmp_path / "snapshots").exists() and not (tmp_path / "logs").exists()


def saved_bytes(model, frames):
    """What backward would keep of a forward pass, beside the weights."""
    sizes, own = {}, {p.data_ptr() for p in (*model.parameters(), *model.buffers())}

    def note(tensor):
        if tensor.data_ptr() not in own:
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(frames)
    return sum(sizes.values())


def test_checkpointed_activations_need_less_memory():
    model = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=16)
    frames = torch.randn(2, 3, 64, 64)
    whole = saved_bytes(model, frames)
    checkpoint_activations(module for module in model.modules() if isinstance(module, BasicBlock))
    assert saved_bytes(model, frames) < 0.6 * whole


@pytest.mark.parametrize("option, function", [("--checkpoint-activations", "checkpoint_activations"),
                                              ("--compile", "torch.nn.Module.compile")])
def test_options_of_the_network_are_applied(monkeypatch, option, function):
    target = f"{training.__name__}.{function}" if "." not in function else function
    for options, calls in (([], 0), ([option], 1)):
        made = []
        monkeypatch.setattr(target, lambda *args, made=made: made.append(args))
        training.prepare_model(nn.Sequential(nn.BatchNorm2d(2)), training.parse_arguments(options),
                               torch.device("cpu"), begins=True)
        assert len(made) == calls


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_a_compiled_network_is_the_network():
    """`--compile` through a compiler that only traces, which needs no C++ compiler on the machine."""
    model = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=16).train()
    frames = torch.randn(2, 3, 32, 32)
    expected = model(frames, dense=False).q_color
    model.compile(backend="aot_eager")
    torch.testing.assert_close(model(frames, dense=False).q_color, expected)


def test_device(train, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cuda:99"):
        train(tmp_path, "--device", "cuda:99")
    asked = []
    monkeypatch.setattr(training, "resolve_device", lambda name: asked.append(name) or torch.device("cpu"))
    train(tmp_path, "--device", "some")
    assert asked == ["some"]


def test_a_loss_that_is_no_number_names_term_step_and_clips():
    losses = Losses(*(torch.tensor(value) for value in (float("nan"), 1.0, float("inf"), 2.0)))
    with pytest.raises(UserError, match=r"total, consistency is not at step 8 \(clips dog, cow\)"):
        refuse_non_finite(losses, 8, ["dog", "cow"])


def test_training_stops_at_a_loss_that_is_no_number(train, tmp_path):
    with pytest.raises(UserError, match=r"is not at step [23] \(clips JPEGImages/clip_\d"):
        train(tmp_path, MODEL__LR=1e30)
    assert len(records(tmp_path)) <= 2 and not (tmp_path / "snapshots/tiny/final.pth").exists()


@pytest.fixture
def broken_data(data, tmp_path):
    root = shutil.copytree(data, tmp_path / "broken")
    for frame in (root / "JPEGImages/clip_0").iterdir():
        frame.write_bytes(frame.read_bytes()[:200])
    return root


def test_broken_frames_are_replaced_named_and_counted(train, tmp_path, broken_data, capfd):
    train(tmp_path, data=broken_data)
    assert records(tmp_path)[-1]["failed_clips"] == 1
    assert "clip_0/0000" in capfd.readouterr().err
    progress = checkpoint(tmp_path, "last.pth")["training"]["progress"]
    assert progress["failed"] == 1 and progress["drawn"] == 6


def test_too_many_broken_frames_end_the_run(train, tmp_path, broken_data, monkeypatch):
    monkeypatch.setattr("training.journal.FAILED_COUNTED_FROM", 6)
    with pytest.raises(UserError, match=r"at most 1% .* 1 of 6"):
        train(tmp_path, data=broken_data)


def test_validation_equals_the_inference_and_evaluation_commands(train, tmp_path, data):
    settings = {"TEST__INFER_WH": [80, 64], "TEST__RADIUS": 3, "TEST__KNN": 4}
    train(tmp_path, "--validate", "filelists/val", **settings)
    words = [str(word) for name, value in settings.items() for word in (name.replace("__", "."), value)]
    infer_vos_dul.main(["--exp", "e", "--run", "r", "--infer-list", "filelists/val", "--mask-output-dir",
                        str(tmp_path / "masks"), "--resume", str(tmp_path / "snapshots/tiny/epoch_001.pth"),
                        "--no-overlay", "--set", "DATASET.ROOT", str(data), *words])
    truth = davis_ground_truth(data / "davis2017", "val", "semi-supervised")
    means = evaluate_folders([tmp_path / "masks/merge_vos"], truth, Protocol())[0].means
    logged = records(tmp_path, key="val/J&F")[-1]
    assert logged["step"] == 3 and logged["epoch"] == 1
    assert logged["val/J&F"] == pytest.approx(means["J&F-Mean"]) and logged["val/J"] == pytest.approx(means["J-Mean"])
    assert logged["val/F"] == pytest.approx(means["F-Mean"]) and 0 < means["J-Mean"] < 1


def test_validation_comes_every_few_epochs_and_keeps_the_best(train, tmp_path):
    train(tmp_path, "--validate", "filelists/val", TEST__INFER_WH=[80, 64], TRAIN__NUM_EPOCHS=5,
          TRAIN__VALIDATE_EVERY=2, TRAIN__KEEP_BEST=2)
    logged = records(tmp_path, key="val/J&F")
    assert [(record["epoch"], record["step"]) for record in logged] == [(0, 0), (2, 6), (4, 12), (5, 15)]
    expected = sorted((f"best_{r['val/J&F']:.4f}_epoch_{r['epoch']:03d}.pth" for r in logged[1:]), reverse=True)[:2]
    assert {path.name for path in (tmp_path / "snapshots/tiny").glob("best_*")} == set(expected)


@pytest.mark.parametrize("config, validate, words", [
    ({"is_dul": False}, "filelists/val", "TEST.KEY color"), (None, "filelists/none", "filelists/none"),
    (None, "filelists/first_only", "masks of later frames")])
def test_validation_that_cannot_work_is_refused_before_training(train, tmp_path, data, config, validate, words):
    line = "1 davis2017/JPEGImages/480p/made/{0:05d}.jpg davis2017/Annotations/480p/{1}/{0:05d}.png\n"
    (data / "filelists/first_only.txt").write_text(line.format(0, "made") + line.format(1, "x") + line.format(2, "x"))
    with pytest.raises(UserError, match=words):
        train(tmp_path, "--validate", validate, config=config)
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("frames, negatives", [(2, 1), (3, 2)])
def test_both_ways_to_attend_agree(monkeypatch, frames, negatives):
    monkeypatch.setattr("losses.color.BLOCK", 7)  # does not divide the queries
    shapes = ((2, frames, (frames - 1) * 9, 16), (2, frames, negatives * 9, 16), (2, frames, negatives * 9, 27))
    results = []
    for attend in (attend_by_products, attend_fused):
        torch.manual_seed(0)
        queries, keys, values = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
        out = attend(queries.requires_grad_(), keys.requires_grad_(), values, 3.0)
        out.square().sum().backward()
        results.append([out.detach(), queries.grad, keys.grad])
    torch.testing.assert_close(*results)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # said by PyTorch's own compiler
@pytest.mark.parametrize("options", [[], ["--precision", "bf16"], ["--precision", "fp16"],
                                     ["--checkpoint-activations"], ["--compile"]], ids=str)
def test_gpu_follows_the_cpu(train, plain, tmp_path, options):
    train(tmp_path, "--device", "cuda", *options)
    for ours, theirs in zip(records(tmp_path), records(plain)):
        assert ours["loss/color"] == pytest.approx(theirs["loss/color"], rel=0.1)
