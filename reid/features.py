"""Pictures -> descriptors: the one place where mirrored views, scales and unit length are decided."""

from contextlib import nullcontext

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from reid.problem import Problem


def describe(model, x, flip=True, scales=(1.0,)):
    """x (B, 3, H, W) -> (B, D) of unit length: f(x) + f(mirror x), over all scales (areas)."""
    total = 0
    for area in scales:  # from the original picture each time
        view = x if area == 1 else F.interpolate(x, scale_factor=area**0.5, mode='bicubic', align_corners=False)
        if flip:
            f = model.embed(torch.cat([view, view.flip(3)])).float()  # (2B, D): one pass for both
            f = f[: len(x)] + f[len(x) :]
        else:
            f = model.embed(view).float()
        total = total + f
    # Each part is of unit length by itself, so that no stripe outshouts the others; 1/sqrt(parts) makes the whole one.
    f = F.normalize(total.unflatten(1, (-1, model.parts)), dim=1) / model.parts**0.5  # (B, D / parts, parts)
    return f.flatten(1)


@torch.inference_mode()
def extract(model, batches, device, flip=True, scales=(1.0,), cast=None, title='features'):
    """All pictures of a loader -> (N, D) float32, in the loader's order."""
    model.eval()
    out, done = None, 0
    with tqdm(total=len(batches.dataset), desc=title, unit='img', disable=None) as bar:
        for x, _ in batches:
            with cast or nullcontext():
                f = describe(model, x.to(device, non_blocking=True), flip, scales).cpu().numpy()
            if out is None:
                out = np.empty((len(batches.dataset), f.shape[1]), np.float32)
            out[done : done + len(f)] = f
            done += len(f)
            bar.update(len(f))
    return out


def areas(text):
    """'1,1.1' -> [1.0, 1.1]"""
    try:
        scales = [float(area) for area in text.split(',')]
    except ValueError:
        scales = []
    if not scales or not all(0.1 <= area <= 10 for area in scales):
        raise Problem(f'--ms {text}: areas such as 1 or 1,1.1,1.2 are expected')
    return scales
