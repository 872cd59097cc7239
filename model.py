"""The networks: a backbone, a pooling, a head.

    net = build(opts)            opts: backbone, pool, head, stride, droprate, linear_num, ..., nclasses
    logits, feature = net(x)     for training: a list of (B, C) scores, one an element of the head, and (B, D)
    f = net.embed(x)             for all else: (B, D), one raw forward pass; see reid.features.describe

Names in the state_dict are those of the well-known PyTorch baseline (`model.*`, `classifier.add_block.*`, ...), so that
its weights load here and ours load there.
"""

import warnings
from collections import namedtuple
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reid import backbones, clip_nets
from reid.problem import Problem

# ---------------------------------------------------------------------------------------------------------------------
# 1. from feature maps to vectors: (B, C, h, w) -> (B, C, parts, 1)


class GeM(nn.Module):
    """Generalised mean, (mean x^p)^(1/p) with p learned, arXiv 1711.02512: 1 is the average, infinity the maximum."""

    def __init__(self, size, p=3.0):
        super().__init__()
        self.size, self.p = size, nn.Parameter(torch.tensor(p))

    def forward(self, maps):
        x = maps.float().clamp(min=1e-6) ** self.p  # float32: a cube soon leaves the range of half precision
        return nn.functional.adaptive_avg_pool2d(x, self.size) ** (1 / self.p)


POOLS = {'avg': nn.AdaptiveAvgPool2d, 'gem': GeM}

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


class BNNeck(nn.Module):
    """BNNeck, arXiv 1906.08332: BatchNorm alone between the pooled feature and a classifier without bias.

    Distances are learnt before it and angles after it, and each is spared the other's demands. Its bias stays 0, for
    a shift would move the origin that angles are measured from.
    """

    def __init__(self, channels, nclasses):
        super().__init__()
        self.add_block = nn.BatchNorm1d(channels)
        self.add_block.bias.requires_grad_(False)
        self.classifier = nn.Linear(channels, nclasses, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.001)
        self.width = channels

    def forward(self, x):  # (B, channels)
        feature = self.add_block(x)
        return self.classifier(feature), feature


class Linear(nn.Module):
    """Nothing between the pooled feature and the classifier."""

    def __init__(self, channels, nclasses):
        super().__init__()
        self.add_block = nn.Identity()
        self.classifier = nn.Linear(channels, nclasses)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)
        self.width = channels

    def forward(self, x):  # (B, channels)
        return self.classifier(x), x


Trunk = namedtuple('Trunk', 'name net channels')  # what a head is put on


class Net(nn.Module):
    """Backbone, pooling over the whole person, one head: with ClassBlock the plain baseline (`ft_net`).

    `loss_feature` and `test_feature` say which feature the losses compare and a descriptor is made of: the pooled one
    `before` the head, or what the head makes of it, `after`.
    """

    parts, frozen, cameras = 1, False, None

    def __init__(self, trunk, pool, head, loss_feature='after', test_feature='after'):
        super().__init__()
        self.backbone, self.model = trunk.name, trunk.net
        self.avgpool = pool((1, 1))
        self.classifier = head
        self.loss_feature, self.test_feature = loss_feature, test_feature
        self.width = head.width if loss_feature == 'after' else trunk.channels
        self.pieces = [self.width]
        self.dim = head.width if test_feature == 'after' else trunk.channels

    def maps(self, x):  # (B, 3, H, W) -> (B, channels, h, w)
        return backbones.maps(self.backbone, self.model, x)

    def pool(self, maps):  # (B, channels, h, w) -> (B, dim)
        pooled = self.avgpool(maps).flatten(1)
        return self.classifier.add_block(pooled) if self.test_feature == 'after' else pooled

    def forward(self, x):
        pooled = self.avgpool(self.maps(x)).flatten(1)  # (B, channels)
        logits, feature = self.classifier(pooled)
        return [logits], feature if self.loss_feature == 'after' else pooled

    def embed(self, x):
        return self.pool(self.maps(x))

    def heads(self):
        """The parts that are new to the task and learn at the full learning rate."""
        return [self.avgpool, self.classifier]


class PCB(nn.Module):
    """Part-based convolutional baseline, arXiv 1711.09349: six horizontal stripes, six classifiers of their own."""

    parts, frozen, cameras = 6, False, None

    def __init__(self, trunk, pool, nclasses, droprate=0.5, linear_num=256):
        super().__init__()
        self.backbone, self.model = trunk.name, trunk.net
        self.avgpool = pool((self.parts, 1))
        self.dropout = nn.Dropout(droprate)
        for i in range(self.parts):
            setattr(self, f'classifier{i}', ClassBlock(trunk.channels, nclasses, droprate, linear_num))
        self.width = self.classifier0.width * self.parts
        self.pieces = [self.width]  # losses compare whole people
        self.dim = trunk.channels * self.parts

    def maps(self, x):
        return backbones.maps(self.backbone, self.model, x)

    def pool(self, maps):  # (B, channels, h, w) -> (B, channels * parts), channel-major
        return self.avgpool(maps).flatten(1)

    def forward(self, x):
        stripes = self.dropout(self.avgpool(self.maps(x))).squeeze(3)  # (B, channels, parts)
        out = [getattr(self, f'classifier{i}')(stripes[:, :, i]) for i in range(self.parts)]
        return [logits for logits, _ in out], torch.cat([feature for _, feature in out], 1)

    def embed(self, x):
        return self.pool(self.maps(x))

    def heads(self):
        return [self.avgpool, *(getattr(self, f'classifier{i}') for i in range(self.parts))]


class Cameras(nn.Module):
    """Side information embedding, arXiv 2102.04378: a learnt vector for each camera of training, `known` by number.

    Times `coefficient` it is added to the class token, as in the code of CLIP-ReID (that paper adds it to all tokens).
    A picture of another camera, or of nobody knows which, gets the mean of all vectors.
    """

    def __init__(self, known, width, coefficient):
        super().__init__()
        self.coefficient = coefficient
        self.register_buffer('known', torch.tensor(known), persistent=False)
        self.vectors = nn.Parameter(torch.empty(len(known), width))
        nn.init.trunc_normal_(self.vectors, std=0.02)

    def forward(self, cams=None):  # (B,) numbers -> (B, width); of no camera at all: (1, width)
        share = self.vectors.new_full((1, len(self.known)), 1 / len(self.known))  # (1, C)
        if cams is not None:
            own = cams[:, None] == self.known  # (B, C)
            share = torch.where(own.any(1, keepdim=True), own.to(share.dtype), share)
        return self.coefficient * (share @ self.vectors)


class Clip(nn.Module):
    """CLIP-ReID, arXiv 2211.13977: a BNNeck for CLIP's image feature, and one for its projection into the space of
    texts. A descriptor is both of them, before their heads.

    The losses compare three `pieces`, each by itself: the feature before the last layer, the feature, its projection.
    With `cameras` a network takes those of the pictures besides, net(x, cams); net(x) is what it says of unknown ones.
    """

    parts, frozen = 1, False

    def __init__(self, trunk, pieces, nclasses, test_feature='before', cameras=None):
        super().__init__()
        self.backbone, self.model = trunk.name, trunk.net
        self.classifier, self.projected = (BNNeck(width, nclasses) for width in pieces[-2:])
        self.pieces, self.test_feature = pieces, test_feature
        self.width, self.dim = sum(pieces), trunk.channels
        self.cameras = cameras

    def told(self, cams):
        """What the backbone is told besides the pictures."""
        return [] if self.cameras is None else [self.cameras(*cams)]

    def maps(self, x, *cams):  # (B, 3, H, W) -> (B, dim, 1, 1)
        return backbones.maps(self.backbone, self.model, x, *self.told(cams))

    def pool(self, maps):
        pooled = maps.flatten(1)  # (B, dim)
        if self.test_feature == 'before':
            return pooled
        both = zip((self.classifier, self.projected), pooled.split(self.pieces[-2:], 1), strict=True)
        return torch.cat([head.add_block(piece) for head, piece in both], 1)

    def forward(self, x, *cams):
        pieces = clip_nets.features(self.model, x, *self.told(cams))
        (logits, _), (projected, _) = self.classifier(pieces[-2]), self.projected(pieces[-1])
        return [logits, projected], torch.cat(pieces, 1)  # two of (B, C); (B, width)

    def embed(self, x, *cams):
        return self.pool(self.maps(x, *cams))

    def heads(self):
        return [self.classifier, self.projected, *([] if self.cameras is None else [self.cameras])]


class ClipText(nn.Module):
    """CLIP as it is, while a text is learnt for each identity (reid.clip_texts): the first stage of CLIP-ReID.

    Nothing in it changes, so what it makes of a picture is computed once. Its scores say whose text is alike.
    """

    parts, frozen, cameras = 1, True, None

    def __init__(self, trunk, pieces, nclasses):
        super().__init__()
        self.backbone, self.model = trunk.name, trunk.net
        self.pieces, self.width, self.dim = pieces[-1:], pieces[-1], trunk.channels
        self.register_buffer('texts', torch.zeros(nclasses, self.width), persistent=False)
        self.requires_grad_(False)

    def train(self, mode=True):
        return super().train(False)

    def maps(self, x):
        return backbones.maps(self.backbone, self.model, x)

    def pool(self, maps):
        return maps.flatten(1)

    def seen(self, x):  # (B, 3, H, W) -> (B, width)
        return clip_nets.features(self.model, x)[-1]

    def forward(self, x):
        feature = self.seen(x) if x.ndim == 4 else x  # pictures, or what was seen of them before
        return [feature @ self.texts.T], feature

    def embed(self, x):
        return self.pool(self.maps(x))

    def heads(self):
        return []


def classblock(trunk, pool, opts):
    head = ClassBlock(trunk.channels, opts.nclasses, opts.droprate, opts.linear_num)
    return Net(trunk, pool, head, opts.loss_feature, opts.test_feature)


def bnneck(trunk, pool, opts):
    return Net(trunk, pool, BNNeck(trunk.channels, opts.nclasses), opts.loss_feature, opts.test_feature)


def linear(trunk, pool, opts):
    return Net(trunk, pool, Linear(trunk.channels, opts.nclasses), opts.loss_feature, opts.test_feature)


def pcb(trunk, pool, opts):
    return PCB(trunk, pool, opts.nclasses, opts.droprate, opts.linear_num)


def clip(trunk, pool, opts):
    pieces = clip_nets.widths(trunk.net, opts.height, opts.width)
    coefficient = getattr(opts, 'camera_embedding', 0)
    if coefficient and not clip_nets.is_vit(trunk.net):
        raise Problem(f'--camera_embedding is for vision transformers such as clip/ViT-B-16, which {trunk.name} is not')
    cameras = Cameras(opts.cameras, trunk.net.conv1.out_channels, coefficient) if coefficient else None
    return Clip(trunk, pieces, opts.nclasses, opts.test_feature, cameras)


def clip_text(trunk, pool, opts):
    return ClipText(trunk, clip_nets.widths(trunk.net, opts.height, opts.width), opts.nclasses)


# Each head with what its paper takes for granted: these are the defaults of the options of the same names.
WHOLE = {'height': 256, 'width': 128, 'stride': 2, 'linear_num': 512, 'loss_feature': 'after', 'test_feature': 'after'}
BEFORE = {**WHOLE, 'linear_num': 0, 'loss_feature': 'before', 'test_feature': 'before'}
HEADS = {
    'classblock': (classblock, WHOLE),
    'bnneck': (bnneck, {**WHOLE, 'stride': 1, 'linear_num': 0, 'loss_feature': 'before'}),
    'linear': (linear, {**WHOLE, 'linear_num': 0}),
    'pcb': (pcb, {**WHOLE, 'height': 384, 'width': 192, 'stride': 1, 'linear_num': 256}),
    'clip': (clip, BEFORE),
    'clip_text': (clip_text, BEFORE),
}


CLIP = ('clip', 'clip_text')  # for its networks only


def complete(opts):
    """Fill in the options that depend on the head and were not given (None), and find what does not go together."""
    for name, value in HEADS[opts.head][1].items():
        if getattr(opts, name) is None:
            setattr(opts, name, value)
    if opts.head in ('bnneck', 'linear', *CLIP) and opts.linear_num > 0:
        raise Problem(f'--linear_num {opts.linear_num}: --head {opts.head} has no such layer; classblock and pcb do')
    if opts.head == 'pcb' and 'before' in (opts.loss_feature, opts.test_feature):
        raise Problem(
            '--loss_feature and --test_feature before: --head pcb has one feature for each. Leave them out, or say '
            'after (over a recipe)'
        )
    if getattr(opts, 'camera_embedding', 0) and opts.head != 'clip':
        raise Problem(f'--camera_embedding is for --head clip, the second stage of CLIP-ReID, and not for {opts.head}')
    of_clip = opts.backbone.startswith('clip/')
    if opts.head in CLIP and not of_clip:
        raise Problem(f'--head {opts.head} is for the networks of CLIP, such as --backbone clip/ViT-B-16')
    if opts.head in CLIP and opts.loss_feature == 'after':
        raise Problem(f'--loss_feature after: with --head {opts.head} losses compare what is before it. Leave it out')
    if opts.head == 'clip_text' and opts.test_feature == 'after':
        raise Problem(
            '--test_feature after: --head clip_text has nothing that a feature could come after. Leave it out'
        )
    if of_clip and (opts.head == 'pcb' or opts.pool == 'gem'):
        told = '--head pcb' if opts.head == 'pcb' else '--pool gem'
        raise Problem(f'{told}: {opts.backbone} gives one feature of the whole picture, with nothing to pool')
    return opts


def build(opts):
    """The network that the options describe, with random weights."""
    overlap = getattr(opts, 'overlap', 0)
    net = backbones.trunk(opts.backbone, opts.stride, opts.height, opts.width, overlap)
    channels = backbones.channels(opts.backbone, net, opts.height, opts.width)
    make, _ = HEADS[opts.head]
    return make(Trunk(opts.backbone, net, channels), POOLS[opts.pool], opts)


# ---------------------------------------------------------------------------------------------------------------------
# 3. weights


def initialise(model, weights, backbone):
    """`--weights`: 'imagenet' or 'openai' (which are downloaded), 'none', or a local file. Says what was done."""
    if weights == 'none':
        return 'random weights: the backbone learns from scratch'
    if weights == 'imagenet':
        model.model.load_state_dict(backbones.imagenet(backbone, model.model))
        return f'ImageNet weights of {backbone}'
    if weights == 'openai':
        model.model.load_state_dict(backbones.openai(backbone, model.model))
        return f"OpenAI's weights of {backbone}"
    return load_weights(model, weights, warm_start=True)


def load_weights(model, path, warm_start=False):
    """Read a .pth into the model: ours, the upstream baseline's, torchvision's, CLIP-ReID's, OpenAI's, DataParallel's
    or an averaged one.

    Everything must fit but the backbone's unused classifier. A warm start may lack the head, and its classifiers may
    have another number of identities: these keep their random values. Returns a line that says what matched.
    """
    state, own = clip_nets.renamed(read_state(path)), model.state_dict()
    if not any(name in own for name in state):  # a bare backbone, as its library saves it
        state = {f'model.{name}': value for name, value in state.items()}
    inner = {name.removeprefix('model.'): value for name, value in state.items() if name.startswith('model.')}
    inner = {f'model.{name}': value for name, value in backbones.translate(inner, model.model).items()}
    state = inner | {name: value for name, value in state.items() if not name.startswith('model.')}
    found = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    optional = (*backbones.unused(model.model), *(backbones.NEW if warm_start else ()))
    optional = tuple(f'model.{name}' for name in optional)
    absent = [n for n in own if n not in found and not n.startswith(optional) and not n.endswith('num_batches_tracked')]
    missing = [n for n in absent if n.startswith('model.')] if warm_start else absent
    reshaped = {n: f'{n}: file {tuple(state[n].shape)}, network {tuple(own[n].shape)}' for n in absent if n in state}
    if missing:
        shapes = [reshaped[n] for n in missing if n in reshaped]
        raise Problem(
            f'{path} does not fit this network: {len(found)} of {len(own)} tensors match, {len(missing)} do not, '
            f'such as {(shapes or missing)[0]}. Was it made with another --backbone, --head or --linear_num?'
        )
    # Of parts that the network has; other parts, such as a second classifier, are none of its business.
    parts = {name.split('.')[1] for name in own if name.startswith('model.')}
    left = [n.removeprefix('model.') for n in inner if n not in own and not n.startswith(optional)]
    left = [name for name in left if name.split('.')[0] in parts and name.endswith('.weight')]
    if left:
        raise Problem(
            f'{path} holds {len(left)} weights, such as {left[0]}, that --backbone {model.backbone} has no place for: '
            'name the network that it is of'
        )
    own.update(found)
    model.load_state_dict(own)
    told = f'{path}: {len(found)} of {len(own)} tensors'
    if lacking := [name for name in absent if name not in reshaped]:
        told += f', not in it: {", ".join(lacking)}'
    if reshaped:
        told += f', of another shape: {"; ".join(reshaped.values())}'
    if 'cameras.vectors' in state and 'cameras.vectors' not in found:
        why = f'here are {len(model.cameras.known)}' if model.cameras else '--camera_embedding would take it'
        told += f'; its embedding of {len(state["cameras.vectors"])} cameras is left out: {why}'
    return told


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
    return tensors


# Single numbers of NumPy, as torchreid keeps one beside its tensors: NumPy 1 and 2 have them under two names.
SCALAR = np.float32(0).__reduce__()[0]
NUMBERS = [np.dtype, *(type(np.dtype(kind)) for kind in ('f2', 'f4', 'f8', 'i4', 'i8'))]
NUMBERS += [(SCALAR, f'numpy.{core}.multiarray.scalar') for core in ('core', '_core')]


def read_tensors(path):
    """What torch.save wrote, provided that it is nothing but tensors and plain values: no code is ever unpickled. Or a
    .safetensors file, as timm's networks often come."""
    if not Path(path).is_file():
        raise Problem(f'{path}: there is no such file')
    try:
        if Path(path).suffix == '.safetensors':
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(NUMBERS):
            warnings.simplefilter('ignore')  # that it may be TorchScript: see below
            return torch.load(path, map_location='cpu', weights_only=True)
    except ImportError:
        raise Problem(f'{path}: such files are read by a package that is not here: pip install safetensors') from None
    except Exception:  # a text, a picture, half a file, a trap: torch raises whatever it stumbles over
        if archive := clip_nets.archive(path):
            return archive
        raise Problem(f'{path} is no file of weights that can be read safely, or it is damaged') from None
