"""ColorNet by `torch.hub`: torch.hub.load(REPOSITORY, "colornet_s", pretrained=True), source="local" for a folder.

Each function gives a network in eval mode. It takes frames normalised by ImageNet's mean and deviation, [N,3,H,W] with
H and W multiples of 8: `embed(frames, "merge")` gives unit features [N,C,H/8,W/8].
"""

from models import build_model, load_model
from models.colornet import ColorNet
from utils.config import REPOSITORY, load_settings, load_train_config
from utils.errors import UserError

dependencies = ["torch", "torchvision", "numpy", "cv2", "yaml"]


def colornet_s(pretrained: bool = False) -> ColorNet:
    """Size S, local and global features; `pretrained` loads the bundled weights."""
    return _colornet("S", "default_S", pretrained)


def colornet_m(pretrained: bool = False) -> ColorNet:
    """Size M, local and global features."""
    return _colornet("M", "default_M", pretrained)


def colornet_l(pretrained: bool = False) -> ColorNet:
    """Size L, local features."""
    return _colornet("L", "color_L", pretrained)


def _colornet(size: str, config: str, pretrained: bool) -> ColorNet:
    weights = REPOSITORY / f"data/weights/colornet_{size}.pth"
    if not pretrained:
        train_config = load_train_config(REPOSITORY / f"data/configs/train_config_{config}.json")
        return build_model(train_config, load_settings()).eval()
    if not weights.is_file():
        raise UserError(f"pretrained weights of size {size} do not come with this software ({weights.name} is not in "
                        "data/weights); take colornet_s, or models.load_model with a file of your own")
    return load_model(weights)
