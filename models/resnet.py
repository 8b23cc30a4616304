"""What the trunk is made of: the blocks and stages of a residual network (He et al., 2016)."""

from __future__ import annotations

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """ResNet's block of two 3x3 convolutions, [N,in,H,W] to [N,out,H/stride,W/stride].

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
