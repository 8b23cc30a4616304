"""What a GPU would refuse, without one: kernels compiled by a stand-in driver, tensors that only pretend.

PyTorch's FakeTensorMode computes shapes and devices, and an operation on tensors of two devices is an error.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import models.neighbours as neighbours
import utils.device as devices
from benchmarks.gpu import FRAMES, Part, run_part
from models.colornet import Branches, ColorNet
from models.neighbours import Memory, NeighbourPropagation
from models.propagation import VideoPropagator, encoder_batch
from tests.helpers import Waits
from training.options import parse_arguments
from utils.config import REPOSITORY
from utils.device import kernels_start, resolve_device
from utils.errors import UserError

triton = pytest.importorskip("triton")


class StandInDriver:
    """What Triton asks of a driver before it launches."""

    def __init__(self, capability: int):
        from triton.backends.compiler import GPUTarget

        self.get_current_target = lambda: GPUTarget("cuda", capability, 32)
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.get_active_torch_device = lambda: torch.device("cuda", 0)


@pytest.mark.parametrize("capability, fast", [(80, False), (90, False), (90, True), (100, False), (100, True),
                                             (120, False)])
def test_the_kernel_compiles_once_for_every_slot_and_number_of_references(capability, fast, monkeypatch):
    from triton.runtime import driver
    from triton.runtime.jit import MockTensor

    import models.neighbours_triton as kernels

    monkeypatch.setattr(driver, "_active", StandInDriver(capability))
    kernels._search_frame.device_caches.clear()
    pointers = dict(features=MockTensor(torch.float32), slots=MockTensor(torch.int64), found=MockTensor(torch.int64))
    compiled = [kernels._search_frame.warmup(
        **pointers, query_slot=slot, references=references, lines=108, line=60, C=256, reach=24, radius_squared=625.0,
        K=16, SIDE=kernels.SIDE, CHANNELS=kernels.CHANNELS, FAST=fast, grid=(1, 1))
        for slot in (1, 0, 2, 16) for references in (1, 2)]
    assert all(kernel is compiled[0] for kernel in compiled) and compiled[0].asm["cubin"]
    kernels._search_frame.device_caches.clear()


@pytest.fixture
def cards(monkeypatch):
    """Lets this process believe in GPUs: cards(count, capability); returns the numbers of those made current."""
    def pretend(count, capability=(9, 0)):
        current = []
        for name, value in {"is_available": lambda: True, "device_count": lambda: count, "set_device": current.append,
                            "get_device_capability": lambda device: capability,
                            "get_device_name": lambda device: "Some Card"}.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return current

    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return pretend


@pytest.mark.parametrize("name, index", [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_chosen_gpu_becomes_the_current_one(cards, name, index):
    current = cards(2)
    assert resolve_device(name) == torch.device("cuda", index)
    assert current == [torch.device("cuda", index)]


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_under_torchrun_every_process_has_a_gpu_of_its_own(cards, monkeypatch, name):
    current = cards(2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert resolve_device(name) == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize("processes, name, words", [
    (3, "auto", "3 processes, 2 GPUs .*--nproc_per_node"), (2, "cuda:1", "a GPU of its own"),
    (1, "cuda:2", "cuda:2 is not there: this machine has 2")])
def test_gpus_that_are_not_there_are_refused(cards, monkeypatch, processes, name, words):
    cards(2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    with pytest.raises(UserError, match=words):
        resolve_device(name)


def test_an_old_gpu_is_refused(cards):
    cards(1, (6, 1))
    with pytest.raises(UserError, match=r"7\.5 or later; Some Card \(cuda:0\) has 6\.1; .* --device cpu"):
        resolve_device()


def test_a_card_that_cannot_be_used_is_named_with_the_reason(monkeypatch, caplog):
    def too_old():
        raise RuntimeError("The driver\nis too old")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    for there, warnings in ((False, 0), (True, 1)):
        monkeypatch.setattr(devices, "_nvidia_card", lambda there=there: there)
        caplog.clear()
        assert resolve_device() == torch.device("cpu")
        assert [record.levelno for record in caplog.records] == [logging.WARNING] * warnings
    assert "the CPU is used: The driver is too old" in caplog.text
    with pytest.raises(UserError, match=r"0 CUDA devices \(The driver is too old"):
        resolve_device("cuda")


@pytest.fixture
def pretended(monkeypatch):
    """Tensors on GPUs that are not there."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)  # is not pretended
    monkeypatch.setattr(neighbours, "free_memory", lambda device: 10**10)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield torch.device("cuda", 1)
    gc.collect()


def context_of(engine, device, C=256, h=60, w=108, frames=4):
    memories = [Memory(engine.prepare(torch.rand(C, h, w, device=device)), torch.rand(3, h, w, device=device))
                for _ in range(frames)]
    return engine.prepare(torch.rand(C, h, w, device=device)), memories[:1], memories[1:]


def test_the_kernel_is_launched_on_the_tensors_device_and_nothing_waits(pretended, monkeypatch):
    import models.neighbours_triton as kernels

    current, launched = [0], []

    @contextlib.contextmanager
    def device(wanted):
        current.append(wanted.index)
        yield
        current.pop()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **options: launched.append((grid, current[-1], arguments))

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(kernels, "_search_frame", Kernel())
    monkeypatch.setattr(neighbours, "kernels_start", lambda: True)
    engine = NeighbourPropagation(knn=10, radius=25, temperature=0.05)
    query, references, recent = context_of(engine, pretended)
    with Waits() as waits:
        labels, similarity = engine(query, references, [*recent, recent[-1]])
    assert [grid for grid, *_ in launched] == [(112, 4)] * 2
    for _, index, arguments in launched:
        assert index == 1
        assert {x.device for x in arguments if isinstance(x, torch.Tensor)} == {pretended}
    assert (labels.shape, similarity.shape) == ((3, 60, 108), (60, 108)) and labels.device == pretended
    assert waits.found == []


def test_without_a_compiler_there_is_one_warning_and_the_plain_search(pretended, monkeypatch, caplog):
    from triton.runtime import driver

    def active(self):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(type(driver), "active", property(active))
    monkeypatch.setattr(neighbours, "kernels_start", kernels_start)
    kernels_start.cache_clear()
    searched = []
    search_all = NeighbourPropagation._search_all
    monkeypatch.setattr(NeighbourPropagation, "_search_all", lambda self, store, query, slots, queries: (
        searched.append(len(queries)), search_all(self, store, query, slots, queries))[1])
    engine = NeighbourPropagation(knn=10, radius=25, temperature=0.05)
    context = context_of(engine, pretended)
    with Waits() as waits:
        assert engine(*context).labels.device == pretended
        assert searched == [6480]  # all at once
        searched.clear()
        monkeypatch.setattr(neighbours, "free_memory", lambda device: 10**9)
        engine(*context)
    assert sum(searched) == 6480 and 500 < searched[0] < 6000
    assert waits.found == []
    assert len(caplog.records) == 1 and "Failed to find C compiler" in caplog.text
    kernels_start.cache_clear()


@pytest.mark.parametrize("fused", [True, False])
def test_max_memory_counts_what_a_gpu_holds(pretended, monkeypatch, fused):
    monkeypatch.setattr(neighbours, "kernels_start", lambda: fused)
    options = dict(knn=10, radius=25, temperature=0.05)
    frame = 4 * 60 * 108 * 257
    with pytest.raises(UserError, match="--max-memory must hold"):  # eight frames have room from the start
        context_of(NeighbourPropagation(**options, max_memory=8 * frame - 1), pretended)
    engine = NeighbourPropagation(**options, max_memory=8 * frame)
    context = context_of(engine, pretended)
    with pytest.raises(UserError, match="--max-memory must hold"):  # and the search has none
        engine(*context)
    with pytest.raises(UserError, match="--max-memory must hold"):  # for the ninth, eight move to a place for sixteen
        context_of(NeighbourPropagation(**options, max_memory=23 * frame), pretended, frames=8)
    engine = NeighbourPropagation(**options, max_memory=24 * frame)
    context_of(engine, pretended, frames=8)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frames_are_encoded_where_the_model_is(pretended, precision, monkeypatch):
    with pretended:
        model = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=128).eval()
    propagator = VideoPropagator(Branches(model, "merge"), size=(160, 96), gaps=[1], precision=precision,
                                 neighbours=NeighbourPropagation(knn=1, radius=2, temperature=0.05))
    monkeypatch.setattr("models.propagation._check_features", lambda features, frames: None)  # looks at values
    features = propagator.encode([np.zeros((48, 80, 3), np.uint8)] * 3)
    assert (features.shape, features.dtype, features.device) == ((3, 256, 12, 20), torch.float32, pretended)


def test_the_encoders_batch_follows_the_frames():
    gpu = torch.device("cuda")
    assert [encoder_batch(gpu, *size) for size in (((864, 480), 480), ((0, 0), 480), ((3840, 2160), 480),
                                                        ((0, 0), 0))] == [8, 7, 1, 1]
    assert encoder_batch(torch.device("cpu"), (864, 480), 480) == 1


def test_compiled_blocks_that_run_again_are_refused():
    with pytest.raises(UserError, match="--compile and --checkpoint-activations exclude each other"):
        parse_arguments(["--compile", "--checkpoint-activations"])


@pytest.mark.slow
def test_one_command_measures_all_and_goes_on_where_a_part_fails(tmp_path):
    """Without a card it says what it would run."""
    for number in range(FRAMES):
        cv2.imwrite(str(tmp_path / f"{number:05d}.jpg"), np.zeros((48, 80, 3), np.uint8))
    done = subprocess.run([sys.executable, "benchmarks/gpu.py", "--frames", tmp_path, "--out", tmp_path / "out"],
                          cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for line in ("-m pytest -q -m gpu", "infer_vos_dul.py --device cuda --video", "propagation.py --device cuda",
                 "--model_size M", "--precision bf16 --compile", "loader.py --workers 4 14"):
        assert line in done.stdout
    assert not (tmp_path / "out").exists()
    done = subprocess.run([sys.executable, "benchmarks/gpu.py", "--frames", tmp_path, "--out", tmp_path / "out",
                           "--only", "Speed"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1 and "got Speed; there are Tests on the GPU, Two frames" in done.stderr
    table = "print('| a |')"
    good, section = run_part(Part("Good", ("-c", table)), 60)
    assert good and section.startswith("## Good\n") and "\n| a |\n" in section
    good, section = run_part(Part("Bad", ("-c", f"{table}; raise SystemExit('no memory')")), 60)
    assert not good and "**failed with status 1**" in section and "no memory" in section
    good, section = run_part(Part("Slow", ("-c", f"{table}; import time; time.sleep(60)")), 1)
    assert not good and "**stopped after 1 s**" in section
