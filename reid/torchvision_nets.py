"""Torchvision's classification networks: their last stride, their feature maps, their files of ImageNet weights."""

import math
import re
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision import models

from reid.problem import Problem

# ---------------------------------------------------------------------------------------------------------------------
# 1. the last stride


def make(name, stride, height, width, refine=None, **settings):
    """The network with random weights; `refine` sets its last stride to 1."""
    if stride == 1 and refine is None:
        raise coarse(name)
    net = models.get_model(name, weights=None, **settings)
    if stride == 1:
        refine(net)
    return net


def coarse(name):
    return Problem(f'--stride 1 is not for {name}, which has no last stride to leave out: say --stride 2')


def refine_convs(net, count):
    """The last convolution with a stride; the last two where one is in a shortcut."""
    strided = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.stride == (2, 2)]
    for conv in strided[-count:]:
        conv.stride = (1, 1)


def refine_convnext(net):
    """Its halvings are 2 x 2 convolutions. Every second place of the finer maps is what it was; what the last row and
    column lack is repeated from beside them."""
    old = net.features[6][1]
    new = nn.Conv2d(old.in_channels, old.out_channels, 2, padding='same', padding_mode='replicate')
    new.weight, new.bias = old.weight, old.bias
    net.features[6][1] = new


def refine_pool(net):
    """The last max-pooling, with a window that keeps the size, as arXiv 1412.7062 did with VGG."""
    pool = [layer for layer in net.modules() if isinstance(layer, nn.MaxPool2d) and layer.stride == 2][-1]
    pool.kernel_size, pool.stride, pool.padding = 3, 1, 1


def refine_densenet(net):
    net.features.transition3.pool.stride = 1  # with its window of 2, as in the baseline: 15 x 7 places where 8 x 4 were


# ---------------------------------------------------------------------------------------------------------------------
# 2. feature maps


def chain(net, x):
    """Most networks run their parts one after another. Here, those before the pooling: for a DenseNet without a ReLU
    after its last norm, as in the baseline; for a Swin up to its norm, the channels moved to the front."""
    for name, part in net.named_children():
        if name in ('avgpool', 'classifier', 'fc'):
            break
        x = part(x)
    return x


def rescaled(net, x):
    """Google's two were trained on pictures in -1 ... 1, to which they bring the usual mean and deviation."""
    return chain(net, net._transform_input(x))


def maxvit_maps(net, x):
    x = net.stem(x)
    for block in net.blocks:
        x = block(x)
    return x


def vit_maps(net, x):
    """Of pictures of any size; what is left over beside whole patches is not looked at."""
    x = net.conv_proj(x)  # (B, C, h, w)
    grid = tuple(x.shape[2:])
    tokens = torch.cat([net.class_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)  # (B, 1 + h w, C)
    tokens = net.encoder.dropout(tokens + resized(net.encoder.pos_embedding, net.grid, grid))
    tokens = net.encoder.ln(net.encoder.layers(tokens))
    return tokens[:, 1:].transpose(1, 2).unflatten(2, grid)


def resized(positions, old, new):
    """Position embeddings (1, 1 + h w, C) for another grid; the first, of the class token, stays."""
    if old == new:
        return positions
    grid = positions[:, 1:].transpose(1, 2).unflatten(2, old)  # (1, C, h, w)
    grid = F.interpolate(grid, new, mode='bicubic', antialias=True)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)


# ---------------------------------------------------------------------------------------------------------------------
# 3. networks that are made for a size


def vit(name, stride, height, width):
    """As many position embeddings as such a picture has patches."""
    net = make(name, stride, height, width)
    divisible(name, net.patch_size, height, width)
    net.grid = (height // net.patch_size, width // net.patch_size)
    net.encoder.pos_embedding = nn.Parameter(torch.empty(1, 1 + math.prod(net.grid), net.hidden_dim).normal_(std=0.02))
    return net


def maxvit(name, stride, height, width):
    """Its windows of 7 x 7 have to tile the last of its maps, and those that are strewn over it, a square."""
    if height != width or height % 224:
        raise Problem(f'{name} takes pictures of 224 x 224, or 448 x 448: --height 224 --width 224')
    net = make(name, stride, height, width, input_size=(height, width))
    net.only = (height, width)
    return net


def divisible(name, patch, height, width):
    if height % patch or width % patch:
        near = [max(1, round(side / patch)) * patch for side in (height, width)]
        raise Problem(
            f'{name} takes pictures whose height and width are multiples of {patch}, and not {height} x {width}: '
            f'--height {near[0]} --width {near[1]}'
        )


# ---------------------------------------------------------------------------------------------------------------------
# 4. files of weights


def url(name):
    """Of the first edition, whose figures are the published ones; of the best, where there is no such edition."""
    editions = models.get_model_weights(name)
    return getattr(editions, 'IMAGENET1K_V1', editions.DEFAULT).url


def translate(state, net):
    """The tensors of a file, with the names and for the size of pictures that net has."""
    # torchvision's own DenseNet files are older than its names: denselayer1.norm.1.weight for denselayer1.norm1.weight
    state = {re.sub(r'(denselayer\d+\.(?:norm|conv))\.(\d)', r'\1\2', name): value for name, value in state.items()}
    positions = state.get('encoder.pos_embedding')
    if positions is not None and hasattr(net, 'grid'):
        count = positions.shape[1] - 1
        side = math.isqrt(count)
        old = (side, side) if side * side == count else tiles(count, *net.grid)
        if old:
            state['encoder.pos_embedding'] = resized(positions, old, net.grid)
    return state


def tiles(count, height, width):
    """Into how many rows and columns `count` squares cut a picture; None if they do not."""
    rows = math.isqrt(count * height // width)
    columns = rows * width // height
    return (rows, columns) if (rows * columns, rows * width) == (count, columns * height) else None


# ---------------------------------------------------------------------------------------------------------------------
# 5. by the beginnings of their names

ONE, TWO = (partial(make, refine=partial(refine_convs, count=count)) for count in (1, 2))  # so many convolutions
POOL = partial(make, refine=refine_pool)
OLD = {'aux_logits': False, 'init_weights': True, 'transform_input': True}  # without the classifiers on the way
FAMILIES = [
    (('resnet', 'resnext', 'wide_resnet', 'regnet', 'shufflenet'), TWO, chain),
    (('efficientnet', 'mobilenet', 'mnasnet'), ONE, chain),
    (('vgg', 'alexnet', 'squeezenet'), POOL, chain),
    (('densenet',), partial(make, refine=refine_densenet), chain),
    (('convnext',), partial(make, refine=refine_convnext), chain),
    (('googlenet',), partial(POOL, **OLD), rescaled),
    (('inception',), partial(make, **OLD), rescaled),
    (('swin',), make, chain),
    (('maxvit',), maxvit, maxvit_maps),
    (('vit',), vit, vit_maps),
]
NETS = {
    name: (build, maps)
    for name in models.list_models(module=models)
    for beginnings, build, maps in FAMILIES
    if name.startswith(beginnings)
}
