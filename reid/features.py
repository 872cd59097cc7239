"""Pictures -> descriptors: the one place where mirrored views, scales and unit length are decided."""

from collections import namedtuple
from contextlib import nullcontext

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from reid import augment, cache, folding, machine, processes
from reid.problem import Problem

HELD = 16  # batches of descriptors that stay where they were made, before they are fetched


def describe(model, x, flip=True, scales=(1.0,)):
    """x (B, 3, H, W) -> (B, D) of unit length: f(x) + f(mirror x), over all scales (areas)."""
    total = 0
    for area in scales:  # from the original picture each time
        view = x if area == 1 else F.interpolate(x, scale_factor=area**0.5, mode='bicubic', align_corners=False)
        if flip:
            f = model.embed(torch.cat([view, view.flip(3)])).float()  # (2B, D): one pass for both
            f = f.unflatten(0, (2, -1)).sum(0)
        else:
            f = model.embed(view).float()
        total = total + f
    # Each part is of unit length by itself, so that no stripe outshouts the others; 1/sqrt(parts) makes the whole one.
    f = F.normalize(total.unflatten(1, (-1, model.parts)), dim=1) / model.parts**0.5  # (B, D / parts, parts)
    return f.flatten(1)


Told = namedtuple('Told', 'embed parts')  # what describe() wants of a network


def told(model, cams):
    """The network, told by which cameras (B,) the pictures are that it will describe: for one that asks for them."""

    def embed(views):  # (B, 3, H, W), or (2B, 3, H, W) with the mirrored ones behind them
        return model.embed(views, cams.repeat(len(views) // len(cams)))

    return Told(embed, model.parts)


@torch.inference_mode()
def extract(
    model, paths, size, device, batchsize, flip=True, scales=(1.0,), cast=None, workers=0, title='features', cams=None
):
    """Pictures, brought to size (height, width) -> (N, D) float32, in order. Several processes share them. `cams`: the
    camera of each, by its number in training, for networks that ask for it; without them all are unknown."""
    share, asks = processes.share(len(paths)), cams is not None and model.cameras is not None
    mine, net, cast = paths[share], folding.quick(model, size, cast), cast or nullcontext()
    labels = cams[share] if asks else None
    batches = cache.loading(mine, labels, *size, cache.turns(len(mine), batchsize), device, workers)
    out, held, done = np.empty((len(mine), model.dim), np.float32), [], 0

    def described(x, seen_by=None):
        with cast:
            return describe(told(net, seen_by) if asks else net, augment.normalise(x), flip, scales)

    try:
        with tqdm(total=len(mine), desc=title, unit='img', disable=processes.hidden()) as bar:
            for i, (x, seen_by) in enumerate(batches, 1):
                held.append(described(x, seen_by))
                bar.update(len(x))
                if i % HELD == 0 or i == len(batches):  # now and then only: a GPU has to be waited for
                    f = torch.cat(held).cpu().numpy()
                    out[done : done + len(f)] = f
                    done += len(f)
                    held.clear()
    except torch.OutOfMemoryError as error:
        held.clear()
        white = torch.full((batchsize, 3, *size), 255, dtype=torch.uint8)
        raise machine.too_large(error, batchsize, lambda b: described(white[:b].to(device))) from None
    return processes.joined(out, len(paths))


@torch.no_grad()
def kept(model, batches, count, cast):
    """What a frozen network sees in each of `count` pictures, once for all epochs: (count, D) on the CPU. Several
    processes share them."""
    seen = []
    for x, _ in tqdm(batches, desc='features', leave=False, disable=processes.hidden()):
        with cast:
            seen.append(model.seen(augment.normalise(x)).float().cpu())
    return torch.from_numpy(processes.joined(torch.cat(seen).numpy(), count))


def areas(text):
    """'1,1.1' -> [1.0, 1.1]"""
    try:
        scales = [float(area) for area in text.split(',')]
    except ValueError:
        scales = []
    if not scales or not all(0.1 <= area <= 10 for area in scales):
        raise Problem(f'--ms {text}: areas such as 1 or 1,1.1,1.2 are expected')
    return scales
