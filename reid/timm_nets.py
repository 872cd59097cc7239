"""Networks of the package timm, PyTorch Image Models: 'timm/NAME', or 'timm/NAME.TAG', where the tag says from which of
several trainings the weights are to be.

They are told apart by what they take and give, not by name. What gives no maps at all is refused.
"""

import sys
from contextlib import suppress
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from reid.problem import Problem
from reid.torchvision_nets import coarse, divisible, tiles


def library(name):
    try:
        import timm
    except ImportError as error:
        raise Problem(f'{name} is a network of the package timm, which is not installed: pip install timm') from error
    return timm, name.removeprefix('timm/')


def known(name):
    timm, short = library(name)
    try:
        return timm.is_model(short) and timm.get_pretrained_cfg(short) is not None
    except RuntimeError:  # the tag is not
        return False


def names():
    timm, _ = library('timm/')
    return [f'timm/{name}' for name in (*timm.list_models(), *timm.list_models(include_tags=True))]


# ---------------------------------------------------------------------------------------------------------------------
# 1. the network and its maps


def make(name, stride, height, width):
    """With random weights, for pictures of this size; of others too (`--ms`), unless `only` is set. A last stride of 1
    comes with dilated convolutions after it, as timm has it."""
    timm, short = library(name)
    finer = {'output_stride': 16} if stride == 1 else {}
    sized = {'img_size': (height, width)} if timm.get_pretrained_cfg(short).fixed_input_size else {}
    try:
        net = flexible(timm, short, finer, sized)
    except (AssertionError, TypeError) as error:
        if finer:
            raise coarse(name) from error
        why = str(error) or 'it takes others'
        raise Problem(f'{name} cannot be made for pictures of {height} x {width}: {why}') from error
    divisible(name, patch(net), height, width)
    return net


def flexible(timm, short, finer, sized):
    if not sized:
        return timm.create_model(short, **finer)
    try:
        return timm.create_model(short, **finer, **sized, dynamic_img_size=True)
    except TypeError as error:
        if 'dynamic_img_size' not in str(error):
            raise
    net = timm.create_model(short, **finer, **sized)
    net.only = sized['img_size']
    return net


def patch(net):
    """The side of the patches into which it cuts a picture, 1 for a convolutional network."""
    embed = getattr(net, 'patch_embed', None)
    return embed.feat_ratio() if hasattr(embed, 'feat_ratio') else 1


def maps(net, x):
    """forward_features() gives maps, maps with the channels last, or a row of tokens. What is left over of a picture
    beside whole patches is not looked at."""
    height, width = (side - side % patch(net) for side in x.shape[2:])
    try:
        y = net.forward_features(x[:, :, :height, :width])
    except (AssertionError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or height % 32 == width % 32 == 0:
            raise
        raise Problem(  # such as a HRNet, which adds up maps of several sizes
            f"timm's {type(net).__name__} cannot look at pictures of {height} x {width}: height and width have to be "
            f'multiples of 32. Leave --ms and --grow out'
        ) from error
    if isinstance(y, Tensor) and y.ndim == 4:
        return y.permute(0, 3, 1, 2) if getattr(net, 'output_fmt', '') == 'NHWC' else y
    if isinstance(y, Tensor) and y.ndim == 3:
        y = y[:, getattr(net, 'num_prefix_tokens', 0) :]  # (B, h w, C), without class and register tokens
        grid = tiles(y.shape[1], height, width)
        if grid:
            return y.transpose(1, 2).unflatten(2, grid)
    raise Problem(f"timm's {type(net).__name__} has no feature maps for pictures of {height} x {width}: choose another")


# ---------------------------------------------------------------------------------------------------------------------
# 2. weights

FILES = ('model.safetensors', 'pytorch_model.bin')


def source(name):
    timm, short = library(name)
    repo = timm.get_pretrained_cfg(short).hf_hub_id
    return f'https://huggingface.co/{repo}, {" or ".join(FILES)}' if repo else 'if there are any'


def weights(name):
    """An OSError within seconds where the hub cannot be reached and no file of it is here: its own client would try
    again and again for most of a minute."""
    timm, short = library(name)
    from huggingface_hub import constants, try_to_load_from_cache  # comes with timm

    repo = timm.get_pretrained_cfg(short).hf_hub_id
    if repo and not any(isinstance(try_to_load_from_cache(repo, file), str) for file in FILES):
        with suppress(HTTPError):  # it grumbles, so it is there
            urlopen(Request(constants.ENDPOINT, method='HEAD'), timeout=10).close()
    try:
        return timm.create_model(short, pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises whatever it stumbles over, half of it no OSError
        raise OSError(f'{type(error).__name__}: {error}') from error


def translate(state, net):
    """By the function that timm keeps beside its network: position embeddings, tables of windows, older names."""
    fit = getattr(sys.modules[type(net).__module__], 'checkpoint_filter_fn', None)
    try:
        return fit(dict(state), net) if fit else state
    except (AssertionError, AttributeError, LookupError, RuntimeError, ValueError):
        return state  # of another network: whoever loads it says what does not fit
