"""Two processes compute what one does: losses, gradients, statistics, whole runs; and end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F

import trainColorNetDUL_benchmark as training
from losses import build_objective
from models.colornet import ColorNet
from tests.training_helpers import ENVIRONMENT, SCRIPT, arguments, checkpoint, make_data, records
from utils import distributed
from utils.config import load_settings, load_train_config, parse_train_config, resolved
from utils.distributed import (
    SyncBatchNorm2d,
    average_gradients,
    broadcast_object,
    gather_numbers,
    gather_objects,
    synchronise_batch_norm,
)
from utils.signals import Stopped

pytestmark = pytest.mark.slow

B, T, S = 4, 3, 64


def whole_batch():
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=generator)
    grid = F.affine_grid(torch.eye(2, 3) + 0.1 * normal(B * T, 2, 3), (B * T, 1, S // 8, S // 8), align_corners=False)
    theta = torch.tensor([[0.7, 0, 0.2], [0, 0.7, 0.1]]) * torch.tensor([1.0, -1, 1, -1]).view(4, 1, 1)
    frames = (B, T, 3, S, S)
    return {"color": {"view_a": normal(*frames), "view_b": normal(*frames), "grid": grid.unflatten(0, (B, T)),
                      "target": torch.rand(frames, generator=generator),
                      "edge": 1 + 4 * torch.rand(B, T, 1, S, S, generator=generator)},
            "dense": {"view_1": normal(*frames), "view_2": normal(*frames), "theta": theta}}


def objective_results(changes):
    """Losses, gradients and statistics of this process's share of the batch, in double precision."""
    share = slice(distributed.rank() * B // distributed.world_size(),
                  (distributed.rank() + 1) * B // distributed.world_size())
    batch = {branch: {name: value[share].double() for name, value in views.items()}
             for branch, views in whole_batch().items()}
    torch.manual_seed(0)
    model = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=16).double().train()
    synchronise_batch_norm(model)
    config = parse_train_config(resolved(load_train_config()) | changes, "test")
    losses = build_objective(config, load_settings())(model, batch, torch.Generator().manual_seed(1))
    losses.total.backward()
    average_gradients(model.parameters())
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": {k: v.detach() for k, v in losses._asdict().items()}, "gradients": gradients,
            "statistics": dict(model.named_buffers())}


def assert_close(name, actual, expected, **tolerances):
    torch.testing.assert_close(actual, expected, **tolerances, msg=lambda message: f"{name}: {message}")


CASES = ({}, {"ohem_range": [0.2, 0.8]}, {"is_neg": False})


def join_group(rank, folder, world_size=2):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world_size)


def work(rank, folder):
    join_group(rank, folder)
    results = {"cases": [objective_results(changes) for changes in CASES],
               "collectives": [gather_objects(f"of {rank}"), broadcast_object(f"of {rank}"),
                               gather_numbers([rank, 3 - rank], torch.device("cpu"))]}
    torch.save(results, folder / f"{rank}.pth")
    distributed.stop()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(changes) for changes in CASES])
def test_losses_gradients_and_statistics_equal_one_process(two_processes, case):
    expected = objective_results(CASES[case])
    for results in two_processes:
        for kind, tensors in expected.items():
            actual = results["cases"][case][kind]
            assert actual.keys() == tensors.keys()
            for name, tensor in tensors.items():
                assert_close(name, actual[name], tensor, rtol=1e-5, atol=1e-9)


def test_collectives(two_processes):
    for results in two_processes:
        assert results["collectives"] == [["of 0", "of 1"], "of 0", [[0, 3], [1, 2]]]


def test_batch_statistics_keep_their_precision_far_from_zero():
    values = 1000 + torch.randn(8, 2, 5, 5)
    layers = [kind(2).train() for kind in (torch.nn.BatchNorm2d, SyncBatchNorm2d)]
    expected, actual = (layer(values) for layer in layers)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("backend, kind", [("nccl", torch.nn.SyncBatchNorm), ("gloo", SyncBatchNorm2d)])
def test_normalisation_over_processes_is_pytorchs_on_gpus_and_ours_on_cpus(monkeypatch, backend, kind):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    model = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=16).train()
    names = list(model.state_dict())
    synchronise_batch_norm(model)
    layers = [module for module in model.modules() if hasattr(module, "running_mean")]
    assert {type(layer) for layer in layers} == {kind} and all(layer.training for layer in layers)
    assert list(model.state_dict()) == names


def torchrun(*words):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT, *words]


def run_two(*words):
    done = subprocess.run(torchrun(*words), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


LENGTH = {"TRAIN__NUM_EPOCHS": 2, "TRAIN__SAVE_EVERY_STEPS": 1, "MODEL__LR": 1e-4}  # 6 steps


def test_a_run_may_change_its_number_of_processes(tmp_path, restored_process, monkeypatch):
    """One process trains; two redo its last four steps and validate; one redoes the last of theirs."""
    data = make_data(tmp_path / "data")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    training.main(arguments(one, data=data, **LENGTH))
    with monkeypatch.context() as patch:
        log = training.MetricLog.log
        patch.setattr(training.MetricLog, "log", lambda self, record, step: (
            log(self, record, step), signal.raise_signal(signal.SIGTERM) if step == 2 else None))
        with pytest.raises(Stopped):
            training.main(arguments(two, data=data, **LENGTH))
    assert checkpoint(two, "last.pth")["training"]["progress"]["step"] == 2
    run_two(*arguments(two, "--resume", "auto", "--validate", "filelists/val", data=data, TEST__INFER_WH=[80, 64],
                       **LENGTH))
    assert checkpoint(two)["provenance"]["processes"] == 2
    assert_close_runs(one, two)
    assert 0 <= records(two, key="val/J&F")[-1]["val/J&F"] <= 1
    (two / "snapshots/tiny/last.pth").unlink()
    training.main(arguments(two, "--resume", "auto", data=data, **LENGTH))
    assert checkpoint(two)["provenance"]["processes"] == 1
    assert_close_runs(one, two)


def assert_close_runs(a, b):
    curves = [[record["loss/total"] for record in records(folder)] for folder in (a, b)]
    assert len(curves[0]) == len(curves[1]) == 6
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)
    ours, theirs = (checkpoint(folder)["model"] for folder in (a, b))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # Adam divides by the root of the squared gradient, so that rounding moves a weight by up to a step's rate.
        assert_close(name, theirs[name], tensor, rtol=1e-2, atol=4e-4)


def test_a_process_that_dies_ends_all(tmp_path):
    data = make_data(tmp_path / "data")
    words = arguments(tmp_path, data=data, TRAIN__NUM_EPOCHS=300)
    process = subprocess.Popen(torchrun(*words), env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not records(tmp_path):
        assert process.poll() is None
        time.sleep(0.05)
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
        workers = [int(pid) for pid in file.read().split()]
    os.kill(workers[-1], signal.SIGKILL)
    assert process.wait(timeout=60) != 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in workers)
