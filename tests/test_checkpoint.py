"""Model files: safe reading, whole writing, averaging, and what they say of themselves."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch

from utils.checkpoint import average_models, read_checkpoint, save_checkpoint
from utils.config import REPOSITORY
from utils.errors import UserError


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_hostile_file_is_refused_and_not_run(tmp_path):
    hostile = {"model": Payload(tmp_path / "owned")}
    (tmp_path / "raw.pkl").write_bytes(pickle.dumps(hostile, protocol=2))
    torch.save(hostile, tmp_path / "zip.pkl")
    for name in ("raw.pkl", "zip.pkl"):
        with pytest.raises(UserError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("contents", [{"weights": {}}, {"model": {"a": "text"}}, [1]])
def test_other_contents_are_refused(tmp_path, contents):
    torch.save(contents, tmp_path / "m.pkl")
    with pytest.raises(UserError, match=r"m\.pkl"):
        read_checkpoint(tmp_path / "m.pkl")


def test_a_file_cut_short_is_refused(tmp_path):
    save_checkpoint(tmp_path / "m.pth", {"model": {"a": torch.zeros(1000)}})
    data = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"m\.pth"):
        read_checkpoint(tmp_path / "m.pth")


@pytest.mark.parametrize("bit", [1, 128])
def test_no_flipped_bit_goes_unnoticed(tmp_path, bit):
    contents = {"model": {"a": torch.arange(6.0), "n": torch.tensor(3)}, "train_config": {"exp": "x", "r": [0, 1.0]}}
    save_checkpoint(tmp_path / "m.pth", contents)
    data = (tmp_path / "m.pth").read_bytes()
    for i in range(0, len(data), 5):
        (tmp_path / "m.pth").write_bytes(data[:i] + bytes([data[i] ^ bit]) + data[i + 1:])
        with contextlib.suppress(UserError):
            assert str(read_checkpoint(tmp_path / "m.pth")) == str(contents), f"byte {i}"


def cycle():
    config = {"exp": "x"}
    config["self"] = config
    return config


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def doubled(times):
    value = [1]
    for _ in range(times):
        value = [value, value]
    return value


@pytest.mark.parametrize("weights, words", [
    ({"a": torch.tensor([1.0, float("nan")])}, "NaN"), ({"a": torch.tensor([-float("inf")])}, "infinite"),
    ({"a": torch.tensor([1e300], dtype=torch.float64)}, "infinite"),
    ({7: torch.zeros(1)}, "7 has a name that is no text"), ({"a": torch.eye(3).to_sparse()}, "sparse"),
    ({"a": torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.qint8)}, "quantised"),
    ({"a": torch.zeros(2, dtype=torch.complex64)}, "complex64"), ({"a": torch.zeros(2, dtype=torch.bool)}, "bool"),
    ({"a": torch.zeros(2, device="meta")}, "without data"),
    ({"a": torch.zeros(1).expand(1_000_000_000, 128)}, "repeats fewer")])
def test_what_cannot_be_weights_is_refused(tmp_path, recwarn, weights, words):
    torch.save({"model": weights}, tmp_path / "m.pth")
    recwarn.clear()
    with pytest.raises(UserError, match=rf"m\.pth.*{words}"):
        read_checkpoint(tmp_path / "m.pth")
    assert not recwarn.list, "one line is what the user sees"


@pytest.mark.parametrize("value", [cycle(), nested(90), doubled(60), 10**5000], ids=["cycle", "deep", "bomb", "number"])
def test_plain_values_are_bounded(tmp_path, value):
    torch.save({"model": {"a": torch.zeros(1)}, "train_config": value}, tmp_path / "m.pth")
    with pytest.raises(UserError, match=r"m\.pth is not a readable checkpoint"):
        read_checkpoint(tmp_path / "m.pth")


def test_a_compressed_archive_is_not_unpacked(tmp_path):
    torch.save({"model": {"a": torch.zeros(1_000_000)}}, tmp_path / "m.pth")
    with (zipfile.ZipFile(tmp_path / "m.pth") as archive,
          zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small):
        for entry in archive.infolist():
            small.writestr(entry.filename, archive.read(entry))
    with pytest.raises(UserError, match="compressed"):
        read_checkpoint(tmp_path / "small.pth")


def test_a_write_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "m.pth", {"model": {"a": torch.ones(1)}})

    def full(contents, path):
        path.write_bytes(b"begun")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"m\.pth"):
        save_checkpoint(tmp_path / "m.pth", {"model": {"a": torch.zeros(1)}})
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]
    assert read_checkpoint(tmp_path / "m.pth")["model"]["a"] == 1


def test_the_average_leaves_counters_out():
    states = [{"w": torch.tensor([float(i), 2.0]), "num_batches_tracked": torch.tensor(i)} for i in (1, 2, 6)]
    average = average_models(states)
    assert average.keys() == {"w"} and average["w"].tolist() == [3, 2] and average["w"].dtype == torch.float32


@pytest.mark.slow
def test_the_command_prints_what_made_the_model(tmp_path):
    save_checkpoint(tmp_path / "m.pth", {"model": {"a": torch.zeros(2, 3)}, "train_config": {"exp": "mine"},
                                         "provenance": {"seed": 41}, "training": {"optimiser": {}}})
    show = lambda *words: subprocess.run([sys.executable, "-m", "utils.checkpoint", *map(str, words)], text=True,
                                         cwd=REPOSITORY, capture_output=True)
    done = show(tmp_path / "m.pth")
    assert done.returncode == 0
    assert '"exp": "mine"' in done.stdout and '"seed": 41' in done.stdout and "optimiser" not in done.stdout
    for words in ((), (tmp_path / "none.pth",)):
        failed = show(*words)
        assert failed.returncode == 1 and failed.stderr.startswith("error: ") and "Traceback" not in failed.stderr


def test_a_file_without_checksums_says_so_and_one_without_weights_is_refused(tmp_path, caplog):
    torch.save({"model": {"a": torch.ones(3)}}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "old.pth")["model"]["a"], torch.ones(3))
    assert "has no checksums" in caplog.text
    torch.save({"model": {}}, tmp_path / "empty.pth")
    with pytest.raises(UserError, match="names to tensors"):
        read_checkpoint(tmp_path / "empty.pth")
