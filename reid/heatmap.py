"""Where a network looked: how much each place of a picture adds to its likeness to the query."""

import torch
from torch.nn import functional as F

from reid.features import describe
from reid.problem import Problem


def heat(model, x, flip=True):
    """x (N, 3, H, W), the query first -> (N, H, W): 1 at the warmest place of each picture, 0 where it is cold.

    The maps of a network have a 32nd of the picture's side, 8 x 4 places at best, so it is shown the pictures twice as
    large. With `flip` both views count, as in a descriptor: what the mirrored picture adds is mirrored back.
    """
    large = F.interpolate(x, scale_factor=2, mode='bicubic', align_corners=False)
    with torch.no_grad():
        target = describe(model, large[:1], flip)[0]
    total = shares(model, large, target)
    if flip:
        total = total + shares(model, large.flip(3), target).flip(2)
    warm = F.interpolate(total[:, None].relu(), x.shape[2:], mode='bilinear', align_corners=False)[:, 0]
    return warm / warm.amax((1, 2), keepdim=True).clamp_min(1e-12)


def shares(model, x, target):
    """The score of x (B, 3, H, W), raw feature times target (D,), as a mean over places: (B, h, w).

    Class activation mapping, arXiv 1512.04150. From the feature maps to the score all is affine in eval mode (averages,
    a Linear, BatchNorm) or, like GeM, grows in proportion to the maps. So gradient times map, with the constant spread
    evenly, adds up to the score exactly.
    """
    with torch.no_grad():
        maps = model.maps(x)  # (B, C, h, w)
    if maps.shape[2:] == (1, 1):
        raise Problem('this network gives one feature of the whole picture, and no map of places: leave --heatmap out')
    maps.requires_grad_()
    score = model.pool(maps) @ target  # (B,)
    (gradient,) = torch.autograd.grad(score.sum(), maps)
    linear = (gradient * maps.detach()).sum(1)  # (B, h, w)
    constant = score.detach() - linear.sum((1, 2))  # (B,)
    return linear * linear[0].numel() + constant[:, None, None]
