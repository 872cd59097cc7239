"""ResNet with the Unit Subtraction Attention Module (Lin et al., "Joint Representation Learning and Keypoint Detection
for Cross-view Geo-localization", IEEE Transactions on Image Processing 2022): places that differ from their
neighbours, such as corners, count for more.

The authors put it after the first ReLU, before the max-pooling, and again after layer1. The names are a ResNet's, with
usam_1 and usam_2 beside them: these two begin at random, since no file of ImageNet weights has them.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Unit(nn.Module):
    """x + a x. With s, the sum of all channels: a = ReLU(BatchNorm(9 s - the sum of s over a window of 3 x 3)), and 0
    along the border, where neighbours are missing and any place would look like a corner."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(1)

    def forward(self, x):  # (B, C, h, w) -> the same
        s = x.sum(1, keepdim=True, dtype=torch.float32)  # (B, 1, h, w): such sums leave the range of half precision
        a = F.relu(self.bn(9 * (s - F.avg_pool2d(s, 3, stride=1, padding=1))))
        a = F.pad(a[:, :, 1:-1, 1:-1], (1, 1, 1, 1))
        return x + a.to(x.dtype) * x


def attend(net):
    """A ResNet of torchvision -> the same with its two modules."""
    net.usam_1, net.usam_2 = Unit(), Unit()
    return net


def maps(net, x):
    x = net.usam_1(net.relu(net.bn1(net.conv1(x))))  # (B, 64, H/2, W/2)
    x = net.usam_2(net.layer1(net.maxpool(x)))  # (B, 256, H/4, W/4)
    return net.layer4(net.layer3(net.layer2(x)))
