"""The image encoders of CLIP, arXiv 2103.00020, from the package open_clip_torch: 'clip/NAME', such as clip/ViT-B-16.

    pieces = features(net, x)    (B, 3, H, W) -> [(B, 768), (B, 768), (B, 512)] of clip/ViT-B-16: the feature before the
                                 last layer, where there is one, the feature, its projection into the space of texts
    y = maps(net, x)             the last two as one map of a single place, (B, 1280, 1, 1), for any head

Names of OpenAI's networks mean these, with the activation that they were trained with. The same networks as others
have trained them take another: clip/ViT-B-16-gelu. clip/tiny is small enough to be trained from nothing on a CPU.

Pictures come normalised as for ImageNet, like everywhere here, and are brought to -1 ... 1, as CLIP-ReID has them.
"""

import copy
import hashlib
import math
import os
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.hub import download_url_to_file
from torch.nn import functional as F

from reid.data import MEAN, STD
from reid.problem import Problem
from reid.torchvision_nets import coarse, divisible, resized, tiles

TINY = {
    'embed_dim': 64,
    'vision_cfg': {'image_size': 224, 'layers': 2, 'width': 64, 'head_width': 32, 'patch_size': 16},
    'text_cfg': {'context_length': 77, 'vocab_size': 49408, 'width': 64, 'heads': 2, 'layers': 2},
}
GELU = '-gelu'  # a name that ends so is not OpenAI's network, but the same as others have trained it

# ---------------------------------------------------------------------------------------------------------------------
# 1. names


def library(name):
    try:
        import open_clip
    except ImportError as error:
        raise Problem(
            f'{name} is a network of the package open_clip_torch, which is not installed: pip install open_clip_torch'
        ) from error
    return open_clip


def short(name):
    return name.removeprefix('clip/')


def names():
    plain = library('clip/').list_models()
    return ['clip/tiny', *(f'clip/{name}' for name in plain), *(f'clip/{name}{GELU}' for name in openai())]


def known(name):
    return name in names()


def openai():
    """The networks that OpenAI has given away."""
    return [name for name in library('clip/').list_openai_models() if not name.endswith('-quickgelu')]


def config(name):
    """What open_clip knows of a network: embed_dim, vision_cfg, text_cfg, quick_gelu."""
    if name == 'clip/tiny':
        return copy.deepcopy(TINY)
    found = library(name).get_model_config(short(name).removesuffix(GELU))
    return found | {'quick_gelu': short(name) in openai() or found.get('quick_gelu', False)}


# ---------------------------------------------------------------------------------------------------------------------
# 2. networks


def make(name, stride, height, width, overlap=0):
    """The image encoder with random weights, for pictures of height x width; of others too. `overlap`: of neighbouring
    patches of a vision transformer, in pixels."""
    about = config(name)
    vision, sized = about['vision_cfg'], 'timm_model_name' not in about['vision_cfg']
    if vision.get('attentional_pool'):
        raise Problem(f'{name} pools by attention over several queries, which is not built here: choose another')
    square = {} if sized else {'image_size': vision.get('image_size', 224)}
    text = {'context_length': 2, 'vocab_size': 2, 'width': 8, 'heads': 1, 'layers': 1}  # the least, to be thrown away
    try:
        net = (
            library(name)
            .CLIP(
                about['embed_dim'], {**vision, **square, 'output_tokens': False}, text, about.get('quick_gelu', False)
            )
            .visual
        )
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise Problem(f'{name} cannot be made: {error}') from error
    if is_resnet(net):
        finish = resnet
    elif is_vit(net):
        finish = vit
    else:
        finish = other
    finish(name, net, stride, height, width, overlap)
    return net


def is_resnet(net):
    return type(net).__name__ == 'ModifiedResNet'


def is_vit(net):
    return type(net).__name__ == 'VisionTransformer'


def resnet(name, net, stride, height, width, overlap):
    """A last stride of 1 leaves out the halving at the begin of layer4. Its attention has a position for each place."""
    if overlap:
        raise apart(name)
    if stride == 1:
        block = net.layer4[0]
        block.avgpool = nn.Identity()
        block.downsample[0] = nn.Identity()
    side = 32 if stride == 2 else 16
    divisible(name, side, height, width)
    net.grid = (height // side, width // side)
    head = net.attnpool
    head.positional_embedding = positions(net.grid, head.positional_embedding.shape[1])


def vit(name, net, stride, height, width, overlap):
    if stride == 1:
        raise coarse(name)
    patch = net.patch_size[0]
    if not 0 <= overlap < patch:
        raise Problem(
            f'--overlap {overlap}: {name} has patches of {patch} pixels, of which 0 to {patch - 1} may overlap'
        )
    step = patch - overlap
    if not overlap:
        divisible(name, patch, height, width)
    net.conv1.stride = (step, step)
    net.grid = tuple((side - patch) // step + 1 for side in (height, width))
    net.positional_embedding = positions(net.grid, net.conv1.out_channels)


def other(name, net, stride, height, width, overlap):
    """One of timm, as open_clip has wrapped it."""
    if overlap:
        raise apart(name)
    if stride == 1:
        raise coarse(name)
    trunk = net.trunk
    if hasattr(trunk, 'set_input_size'):
        trunk.set_input_size(img_size=(height, width))
        net.only = (height, width)


def apart(name):
    return Problem(f'--overlap is for the patches of a vision transformer such as clip/ViT-B-16, which {name} is not')


def positions(grid, width):
    return nn.Parameter(width**-0.5 * torch.randn(1 + math.prod(grid), width))


# ---------------------------------------------------------------------------------------------------------------------
# 3. features


def features(net, x, camera=None):
    """`camera` (B or 1, C): of vision transformers, what is added to the class token, before all layers."""
    x = (x * channel(STD, x) + channel(MEAN, x) - 0.5) / 0.5  # to -1 ... 1
    if is_resnet(net):
        return resnet_features(net, x)
    if is_vit(net):
        return vit_features(net, x, camera)
    pooled = net.trunk(x)
    return [pooled, net.head(pooled)]


def channel(values, x):
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(3, 1, 1)


def vit_features(net, x, camera=None):
    """Those of the class token."""
    x = net.conv1(x)  # (B, C, h, w)
    where = resized(net.positional_embedding[None], net.grid, tuple(x.shape[2:])).to(x.dtype)
    first = net.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
    if camera is not None:
        first = first + camera[:, None].to(x.dtype)
    x = net.ln_pre(torch.cat([first, x.flatten(2).transpose(1, 2)], 1) + where)  # (B, 1 + h w, C)
    *before, last = net.transformer.resblocks
    for block in before:
        x = block(x)
    feature = pooled(net, last(x))
    return [pool(net, x), feature, feature if net.proj is None else feature @ net.proj.to(feature.dtype)]


def pooled(net, x):
    if net.final_ln_after_pool:
        return net.ln_post(pool(net, x))
    return pool(net, net.ln_post(x))


def pool(net, x):
    return x[:, 1:].mean(1) if net.pool_type == 'avg' else x[:, 0]


def resnet_features(net, x):
    """Their means over all places; the projection comes from an attention over them, whose query is their mean."""
    before = net.layer3(net.layer2(net.layer1(net.stem(x))))
    maps = net.layer4(before)  # (B, C, h, w)
    return [before.mean((2, 3)), maps.mean((2, 3)), attended(net, maps)]


def attended(net, maps):
    head = net.attnpool
    where = resized(head.positional_embedding[None], net.grid, tuple(maps.shape[2:])).to(maps.dtype)
    places = maps.flatten(2).transpose(1, 2)  # (B, h w, C)
    places = torch.cat([places.mean(1, keepdim=True), places], 1) + where
    q, k, v = (
        part.unflatten(2, (head.num_heads, -1)).transpose(1, 2)  # (B, heads, places, C / heads)
        for part in (head.q_proj(places[:, :1]), head.k_proj(places), head.v_proj(places))
    )
    return head.c_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))


def maps(net, x, camera=None):
    return torch.cat(features(net, x, camera)[-2:], 1)[:, :, None, None]


def widths(net, height, width):
    """How long the pieces are, found by trying."""
    training, x = net.training, torch.zeros(1, 3, height, width, device=next(net.parameters()).device)
    with torch.no_grad():
        pieces = [piece.shape[1] for piece in features(net.eval(), x)]
    net.train(training)
    return pieces


# ---------------------------------------------------------------------------------------------------------------------
# 4. weights


def source(name):
    about = library(name).get_pretrained_cfg(short(name), 'openai') if short(name) in openai() else None
    if not about:
        raise Problem(
            f'OpenAI has no weights for {name}; there are some for {", ".join(openai())}. --weights PATH, or none'
        )
    return about['url']


def weights(name):
    """OpenAI's file, all of it: image and text encoder. It is kept where their own package keeps it."""
    url = source(name)
    file = Path(os.path.expanduser('~/.cache/clip'), Path(url).name)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(url, str(file), hash_prefix=digest_of(url), progress=False)
        except (OSError, RuntimeError) as error:
            raise Problem(
                f"OpenAI's weights of {name} could not be downloaded ({error}).\n"
                f'  With a copy of them, {url}: put it at {file}, or say --weights PATH\n'
                f'  To learn from scratch instead: --weights none --backbone_lr 1'
            ) from None
    found = archive(file)
    if found is None:
        raise Problem(f'{file} is not the file that OpenAI has published as {url}, or only a part of it: remove it')
    return found


def digest_of(url):
    return url.split('/')[-2]  # OpenAI's addresses name the SHA-256 of what lies there


def archive(path):
    """The tensors of a file of OpenAI's. That is a TorchScript archive, and so a program: only those that are known by
    their SHA-256 are opened. None, if it is something else."""
    try:
        whole = {digest_of(source(f'clip/{name}')) for name in openai()}
    except Problem:  # open_clip is not here
        return None
    if hashlib.sha256(Path(path).read_bytes()).hexdigest() not in whole:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # TorchScript is deprecated, which its users have heard
        return dict(torch.jit.load(path, map_location='cpu').state_dict())


# How the names begin in files of OpenAI and of open_clip (visual.), and of CLIP-ReID; and here.
NAMES = {
    'visual.': 'model.',
    'image_encoder.': 'model.',
    'bottleneck_proj.': 'projected.add_block.',
    'bottleneck.': 'classifier.add_block.',
    'classifier_proj.weight': 'projected.classifier.weight',
    'classifier.weight': 'classifier.classifier.weight',
    'cv_embed': 'cameras.vectors',
}


def renamed(state):
    """A whole file of OpenAI's, open_clip's or CLIP-ReID's -> its image encoder and heads by our names. Any other file
    is left as it is."""
    if not any(name.startswith(('visual.', 'image_encoder.')) for name in state):
        return state
    found = {}
    for name, value in state.items():
        for theirs, ours in NAMES.items():
            if name.startswith(theirs):
                found[ours + name[len(theirs) :]] = value.float()
                break
    return found


def translate(state, net):
    """Position embeddings for the grid that net has."""
    for name in ('positional_embedding', 'attnpool.positional_embedding'):
        given = state.get(name)
        if given is not None and hasattr(net, 'grid') and given.ndim == 2 and len(given) - 1 != math.prod(net.grid):
            count = len(given) - 1
            side = math.isqrt(count)
            old = (side, side) if side * side == count else tiles(count, *net.grid)
            if old:
                state = state | {name: resized(given.float()[None], old, net.grid)[0]}
    return state
