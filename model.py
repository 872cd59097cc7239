"""The networks: a backbone, a pooling, a head.

    net = build(opts)            opts: backbone, head, stride, droprate, linear_num, nclasses
    logits, feature = net(x)     for training: a list of (B, C) scores, one an element of the head, and (B, D)
    f = net.embed(x)             for all else: (B, D), one raw forward pass; see reid.features.describe

Names in the state_dict are those of the well-known PyTorch baseline (`model.*`, `classifier.add_block.*`, ...), so that
its weights load here and ours load there.
"""

import re
from collections import namedtuple
from pathlib import Path

import torch
from torch import nn
from torchvision import models

from reid.problem import Problem

# ---------------------------------------------------------------------------------------------------------------------
# 1. backbones: the torchvision network, its feature maps, and what a last stride of 1 means to it


def resnet_maps(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))  # (B, 64, H/4, W/4)
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))  # (B, C, H/32, W/32), H/16 with stride 1


def resnet_stride1(net):
    block = net.layer4[0]
    strided = block.conv2 if hasattr(block, 'conv3') else block.conv1  # Bottleneck strides in its 3x3, BasicBlock first
    strided.stride = block.downsample[0].stride = (1, 1)


def densenet_maps(net, x):
    return net.features(x)  # (B, C, H/32, W/32). No ReLU after the last norm: the baseline pools straight after it


def densenet_stride1(net):
    net.features.transition3.pool.stride = 1


Backbone = namedtuple('Backbone', 'make channels maps stride1')
BACKBONES = {
    'resnet18': Backbone(models.resnet18, 512, resnet_maps, resnet_stride1),
    'resnet50': Backbone(models.resnet50, 2048, resnet_maps, resnet_stride1),
    'densenet121': Backbone(models.densenet121, 1024, densenet_maps, densenet_stride1),
}


def trunk(name, stride):
    """A backbone's entry and a network of it with random weights. Its own last layer stays, unused, for the names."""
    backbone = BACKBONES[name]
    net = backbone.make(weights=None)
    if stride == 1:
        backbone.stride1(net)
    return backbone, net


# ---------------------------------------------------------------------------------------------------------------------
# 2. heads


class ClassBlock(nn.Module):
    """Linear -> BatchNorm -> Dropout gives the feature, one more Linear the scores of the identities."""

    def __init__(self, channels, nclasses, droprate=0.5, linear_num=512):
        super().__init__()
        width = linear_num if linear_num > 0 else channels
        block = [nn.Linear(channels, width)] if linear_num > 0 else []
        block += [nn.BatchNorm1d(width)]
        block += [nn.Dropout(droprate)] if droprate > 0 else []
        self.add_block = nn.Sequential(*block)
        self.classifier = nn.Sequential(nn.Linear(width, nclasses))
        self.width = width

        for layer in self.add_block:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, mode='fan_out')
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.BatchNorm1d):
                nn.init.normal_(layer.weight, 1.0, 0.02)
        nn.init.normal_(self.classifier[0].weight, std=1e-4)
        nn.init.zeros_(self.classifier[0].bias)

    def forward(self, x):  # (B, channels)
        feature = self.add_block(x)  # (B, width)
        return self.classifier(feature), feature


class Net(nn.Module):
    """Backbone, global average pooling, ClassBlock: the plain baseline (`ft_net`)."""

    parts = 1

    def __init__(self, backbone, nclasses, stride=2, droprate=0.5, linear_num=512):
        super().__init__()
        self.backbone, self.model = trunk(backbone, stride)
        self.classifier = ClassBlock(self.backbone.channels, nclasses, droprate, linear_num)
        self.dim = self.classifier.width

    def maps(self, x):  # (B, 3, H, W) -> (B, channels, h, w)
        return self.backbone.maps(self.model, x)

    def pool(self, maps):  # (B, channels, h, w) -> (B, dim)
        return self.classifier.add_block(maps.mean((2, 3)))

    def forward(self, x):
        logits, feature = self.classifier(self.maps(x).mean((2, 3)))
        return [logits], feature

    def embed(self, x):
        return self.pool(self.maps(x))

    def heads(self):
        """The parts that are new to the task and learn at the full learning rate."""
        return [self.classifier]


class PCB(nn.Module):
    """Part-based convolutional baseline, arXiv 1711.09349: six horizontal stripes, six classifiers of their own."""

    parts = 6

    def __init__(self, backbone, nclasses, stride=1, droprate=0.5, linear_num=256):
        super().__init__()
        self.backbone, self.model = trunk(backbone, stride)
        self.avgpool = nn.AdaptiveAvgPool2d((self.parts, 1))
        self.dropout = nn.Dropout(droprate)
        for i in range(self.parts):
            setattr(self, f'classifier{i}', ClassBlock(self.backbone.channels, nclasses, droprate, linear_num))
        self.dim = self.backbone.channels * self.parts

    def maps(self, x):
        return self.backbone.maps(self.model, x)

    def pool(self, maps):  # (B, channels, h, w) -> (B, channels * parts), channel-major
        return self.avgpool(maps).flatten(1)

    def forward(self, x):
        stripes = self.dropout(self.avgpool(self.maps(x))).squeeze(3)  # (B, channels, parts)
        out = [head(stripes[:, :, i]) for i, head in enumerate(self.heads())]
        return [logits for logits, _ in out], torch.cat([feature for _, feature in out], 1)

    def embed(self, x):
        return self.pool(self.maps(x))

    def heads(self):
        return [getattr(self, f'classifier{i}') for i in range(self.parts)]


# Each head with what its paper takes for granted: these are the defaults of the options of the same names.
HEADS = {
    'classblock': (Net, {'height': 256, 'width': 128, 'stride': 2, 'linear_num': 512}),
    'pcb': (PCB, {'height': 384, 'width': 192, 'stride': 1, 'linear_num': 256}),
}


def complete(opts):
    """Fill in the options that depend on the head and were not given (None)."""
    for name, value in HEADS[opts.head][1].items():
        if getattr(opts, name) is None:
            setattr(opts, name, value)
    return opts


def build(opts):
    """The network that the options describe, with random weights."""
    make, _ = HEADS[opts.head]
    return make(opts.backbone, opts.nclasses, opts.stride, opts.droprate, opts.linear_num)


# ---------------------------------------------------------------------------------------------------------------------
# 3. weights


def initialise(model, weights, backbone):
    """`--weights`: 'imagenet' (torchvision downloads them), 'none', or a local file. Says what was done."""
    if weights == 'none':
        return 'random weights: the backbone learns from scratch'
    if weights == 'imagenet':
        try:
            net = BACKBONES[backbone].make(weights='IMAGENET1K_V1')
        except OSError as error:  # URLError and time-outs are OSErrors
            raise Problem(
                f'the ImageNet weights of {backbone} could not be downloaded ({error}).\n'
                f'  With a copy of the file (torchvision names it {backbone}-xxxxxxxx.pth): --weights PATH\n'
                f'  To learn from scratch instead:                            --weights none --backbone_lr 1'
            ) from None
        model.model.load_state_dict(net.state_dict())
        return f'ImageNet weights of {backbone}, from torchvision'
    return load_weights(model, weights, warm_start=True)


def load_weights(model, path, warm_start=False):
    """Read a .pth into the model: ours, the upstream baseline's, torchvision's, DataParallel's or an averaged one.

    Everything must fit but the backbone's unused classifier. A warm start may lack the head, and its classifiers may
    have another number of identities: these keep their random values. Returns a line that says what matched.
    """
    state = read_state(path)
    own = model.state_dict()
    if not any(name in own for name in state):  # a bare backbone, as torchvision saves it
        state = {f'model.{name}': value for name, value in state.items()}
    found = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    optional = ('model.fc.', 'model.classifier.'), 'num_batches_tracked'  # the unused classifier; a counter
    absent = [n for n in own if n not in found and not (n.startswith(optional[0]) or n.endswith(optional[1]))]
    missing = [n for n in absent if n.startswith('model.')] if warm_start else absent
    if missing:
        shapes = [f'{n}: file {tuple(state[n].shape)}, network {tuple(own[n].shape)}' for n in missing if n in state]
        raise Problem(
            f'{path} does not fit this network: {len(found)} of {len(own)} tensors match, {len(missing)} do not, '
            f'such as {(shapes or missing)[0]}. Was it made with another --backbone, --head or --linear_num?'
        )
    model.load_state_dict(found, strict=False)
    return f'{path}: {len(found)} of {len(own)} tensors' + (f', not in it: {", ".join(absent)}' if absent else '')


def read_state(path):
    """The tensors of a .pth by name, without the wrappers' prefixes."""
    state = read_tensors(path)
    if isinstance(state, dict) and isinstance(state.get('state_dict'), dict):
        state = state['state_dict']
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise Problem(f'{path} holds no weights by name (a state_dict was expected)')
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor) and name != 'n_averaged'}
    if all(name.startswith('module.') for name in tensors):  # DataParallel and AveragedModel wrap the network once
        tensors = {name[len('module.') :]: value for name, value in tensors.items()}
    # torchvision's own DenseNet files are older than its names: denselayer1.norm.1.weight for denselayer1.norm1.weight
    return {re.sub(r'(denselayer\d+\.(?:norm|conv))\.(\d)', r'\1\2', name): value for name, value in tensors.items()}


def read_tensors(path):
    """What torch.save wrote, provided that it is nothing but tensors and plain values: no code is ever unpickled."""
    if not Path(path).is_file():
        raise Problem(f'{path}: there is no such file')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception:  # a text, a picture, half a file, a trap: torch raises whatever it stumbles over
        raise Problem(f'{path} is no file of weights that can be read safely, or it is damaged') from None
