"""IBN-Net, arXiv 1807.09441: ResNets in which instance normalisation takes out of the early features what is only the
style of a picture, such as its light or the colours of a camera. Names are as in the authors' files, which load here.
"""

import torch
from torch import nn
from torchvision.models import resnet

BLOCKS = {'resnet18': [2, 2, 2, 2], 'resnet34': [3, 4, 6, 3], 'resnet50': [3, 4, 6, 3], 'resnet101': [3, 4, 23, 3]}
FILES = {  # trained on ImageNet; the end of each name is the beginning of its SHA-256
    'resnet18_ibn_a': 'resnet18_ibn_a-2f571257.pth',
    'resnet34_ibn_a': 'resnet34_ibn_a-94bc1577.pth',
    'resnet50_ibn_a': 'resnet50_ibn_a-d9d0bb7b.pth',
    'resnet101_ibn_a': 'resnet101_ibn_a-59ea0ac6.pth',
    'resnet50_ibn_b': 'resnet50_ibn_b-9ca61e85.pth',
    'resnet101_ibn_b': 'resnet101_ibn_b-c55f6dba.pth',
}


def url(name):
    return f'https://github.com/XingangPan/IBN-Net/releases/download/v1.0/{FILES[name]}'


class IBN(nn.Module):
    """Figure 3 (a): instance normalisation for the first half of the channels, batch normalisation for the other."""

    def __init__(self, channels):
        super().__init__()
        self.IN = nn.InstanceNorm2d(channels // 2, affine=True)
        self.BN = nn.BatchNorm2d(channels - channels // 2)

    def forward(self, x):  # (B, channels, h, w) -> the same
        first, second = x.split([self.IN.num_features, self.BN.num_features], 1)
        return torch.cat([self.IN(first), self.BN(second)], 1)


class Bottleneck(resnet.Bottleneck):
    """A ResNet's block; with `IN`, figure 3 (b): instance normalisation after the addition, before the last ReLU."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.IN = None

    def forward(self, x):
        if self.IN is None:
            return super().forward(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.IN(self.bn3(self.conv3(y)) + x))  # the last of a stage, so it has no downsample


def build(name):
    """'resnet50_ibn_a' -> the network with random weights.

    IBN-a: an IBN for the first norm of each block, but for those of layer4, whose features are the meaning of a picture
    and not its style. IBN-b: an IN for the norm of the stem and after layer1 and layer2.
    """
    depth, kind = name.split('_ibn_')
    basic = depth in ('resnet18', 'resnet34')
    net = resnet.ResNet(resnet.BasicBlock if basic else Bottleneck, BLOCKS[depth])
    if kind == 'a':
        for block in (*net.layer1, *net.layer2, *net.layer3):
            block.bn1 = IBN(block.bn1.num_features)
    else:
        net.bn1 = nn.InstanceNorm2d(net.bn1.num_features, affine=True)
        for block in (net.layer1[-1], net.layer2[-1]):
            block.IN = nn.InstanceNorm2d(block.bn3.num_features, affine=True)
    return net
