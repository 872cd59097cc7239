"""Where a network looked: which regions of a picture brought it close to the query."""

import torch
from torch.nn import functional as F


def heat(model, x, target):
    """Grad-CAM, arXiv 1610.02391, of the similarity to a descriptor. x (B, 3, H, W), target (D,) -> (B, H, W) in 0..1.

    The score is the product of the raw feature with the target: the gradient of a cosine vanishes where the two agree,
    and the query would see nothing in itself.
    """
    with torch.no_grad():
        maps = model.maps(x)  # (B, C, h, w)
    maps.requires_grad_()
    score = (model.pool(maps) @ target).sum()
    (gradient,) = torch.autograd.grad(score, maps)
    alpha = gradient.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
    cam = (alpha * maps.detach()).sum(1, keepdim=True).relu()
    cam = F.interpolate(cam, x.shape[2:], mode='bilinear', align_corners=False)[:, 0]
    return cam / cam.amax((1, 2), keepdim=True).clamp_min(1e-12)
