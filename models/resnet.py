"""The trunk: an 18-layer residual network of output stride 8 (DESIGN section 4)."""

from __future__ import annotations

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions (He et al., 2016), [N,in,H,W] to [N,out,H/stride,W/stride].

    Its parts have the names of torchvision's, which takes a second to import.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, downsample: nn.Module | None = None):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """The sum of both ways, rectified."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def residual_stage(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Two basic blocks; the first one changes channels and stride: [N,in,H,W] to [N,out,H/stride,W/stride]."""
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                                 nn.BatchNorm2d(out_channels))
    return nn.Sequential(BasicBlock(in_channels, out_channels, stride, shortcut),
                         BasicBlock(out_channels, out_channels))


class Trunk(nn.Module):
    """[N,3,H,W] to [N,channels[3],H/8,W/8]: stem and four stages of strides 1, 2, 1, 1.

    Args:
        channels: outputs of the stem and `layer1`, `layer2`, `layer3`, `layer4`.
        stem_kernel: kernel of the first convolution, odd [pixels].
    """

    def __init__(self, channels: tuple[int, int, int, int], stem_kernel: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], stem_kernel, stride=2, padding=stem_kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = residual_stage(channels[0], channels[0])
        self.layer2 = residual_stage(channels[0], channels[1], stride=2)
        self.layer3 = residual_stage(channels[1], channels[2])
        self.layer4 = residual_stage(channels[2], channels[3])

    def trunk(self, frames: Tensor) -> Tensor:
        """Frames [N,3,H,W] to the output of `layer4`, [N,channels[3],H/8,W/8]."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(frames))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))
