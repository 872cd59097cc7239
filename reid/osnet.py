"""OSNet, arXiv 1905.00953: a network made for re-identification, small enough to learn it from scratch.

What tells two persons apart may be as small as a logo or as large as a coat. So each block looks at 3x3, 5x5, 7x7 and
9x9 at once (omni-scale), and gates weigh these channel by channel, picture by picture. Published for 256x128:

    width        1.0     0.75     0.5    0.25
    weights      2.2 M   1.3 M   0.6 M   0.2 M
    mult-adds  978.9 M 571.8 M 272.9 M  82.3 M

Names in the state_dict are those of the authors' files (`conv2.0.conv2b.1.conv2.weight`), so that these load.
"""

import torch
from torch import nn
from torch.nn import functional as F

from reid.depthwise import Depthwise


class OSNet(nn.Module):
    """maps(x) are its feature maps, forward(x) its scores in the 1000 classes of ImageNet. Width is the paper's beta. A
    stride of 1 leaves out the last of four halvings, the pooling of the second transition."""

    def __init__(self, width=1.0, stride=2):
        super().__init__()
        a, b, c, d = (int(channels * width) for channels in (64, 256, 384, 512))
        self.channels = d
        self.conv1 = Conv(3, a, 7, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.conv2 = nn.Sequential(Block(a, b), Block(b, b), transition(b, 2))
        self.conv3 = nn.Sequential(Block(b, c), Block(c, c), transition(c, stride))
        self.conv4 = nn.Sequential(Block(c, d), Block(d, d))
        self.conv5 = Conv(d, d)
        self.fc = nn.Sequential(nn.Linear(d, 512), nn.BatchNorm1d(512), nn.ReLU())
        self.classifier = nn.Linear(512, 1000)
        self.apply(initialise)

    def maps(self, x):  # (B, 3, H, W) -> (B, channels, H/16, W/16), H/8 with stride 1
        x = self.maxpool(self.conv1(x))
        return self.conv5(self.conv4(self.conv3(self.conv2(x))))

    def forward(self, x):
        return self.classifier(self.fc(self.maps(x).mean((2, 3))))


class Block(nn.Module):
    """The omni-scale residual block, y = ReLU(x + x~): 1x1 to a quarter of the channels, four streams, 1x1 back.

    x~ is the sum over t = 1 ... T of G(x^t) * x^t, where x^t = F^t(x) is t lite 3x3 layers, which see 2t + 1 pixels.
    T is 4. The one gate G for all streams is what makes it unified.
    """

    def __init__(self, channels, out):
        super().__init__()
        mid = out // 4
        self.conv1 = Conv(channels, mid)
        self.conv2a = Lite3x3(mid)
        self.conv2b = nn.Sequential(*(Lite3x3(mid) for _ in range(2)))
        self.conv2c = nn.Sequential(*(Lite3x3(mid) for _ in range(3)))
        self.conv2d = nn.Sequential(*(Lite3x3(mid) for _ in range(4)))
        self.gate = Gate(mid)
        self.conv3 = Conv(mid, out, linear=True)
        self.downsample = Conv(channels, out, linear=True) if channels != out else None

    def forward(self, x):
        y = self.conv1(x)
        a, b, c, d = (self.gate(stream(y)) for stream in (self.conv2a, self.conv2b, self.conv2c, self.conv2d))
        y = self.conv3(a + b + c + d)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class Gate(nn.Module):
    """The unified aggregation gate: G(x), a number between 0 and 1 for each channel, times x. Global average pooling
    and two layers, the hidden one with a sixteenth of the channels."""

    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Lite3x3(nn.Module):
    """The lite 3x3 layer: 1x1 (v) over all channels, then a depthwise 3x3 (u), batch norm, ReLU. The other way round
    than in MobileNet, and nothing between the two."""

    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = Depthwise(channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(self.bn(self.conv2(self.conv1(x))), inplace=True)


class Conv(nn.Module):
    """Convolution, batch norm and, if it is not linear, ReLU."""

    def __init__(self, channels, out, kernel=1, stride=1, linear=False):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out)
        self.linear = linear

    def forward(self, x):
        x = self.bn(self.conv(x))
        return x if self.linear else F.relu(x, inplace=True)


def transition(channels, stride):
    """1x1 convolution and, with a stride of 2, 2x2 average pooling."""
    return nn.Sequential(Conv(channels, channels), *[nn.AvgPool2d(2)] * (stride == 2))


def initialise(layer):
    """As the authors begin from scratch: Kaiming's normal distribution by fan out, and no bias."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode='fan_out', nonlinearity='relu')
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01)
    if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)
