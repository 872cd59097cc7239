"""Any picture -> its descriptor, by a trained network or by a file that export.py has made of one.

embedder = embedding.of_file(path), or utils.embedder(opts)
for path, f in embedding.described(embedder, paths): ...
"""

from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from reid import augment, data, features, folding
from reid.machine import cores
from reid.problem import Problem
from reid.runtime import opened

# describe(uint8 (B, H, W, 3)) -> float32 (B, D) of unit length. size: (height, width). bounds: of thresholds.json, or a
# Problem that says why there are none. about: whose descriptors these are, for files that keep them.
Embedder = namedtuple('Embedder', 'describe size dim bounds about')


def of_network(model, size, flip, device, bounds, about):
    """The embedder of a network in eval mode."""
    net = folding.quick(model, size)

    @torch.inference_mode()
    def describe(x):
        x = torch.from_numpy(x).to(device).permute(0, 3, 1, 2)  # (B, 3, H, W), of bytes
        return features.describe(net, augment.normalise(x), flip).cpu().numpy()

    return Embedder(describe, size, model.dim, bounds, about)


def of_file(path, threads=0, runtime=None, gpu=None):
    """The embedder of an exported file, which brings along what was known when it was made."""
    run = opened(path, runtime, threads, gpu)
    bounds = run.about['bounds'] or Problem(
        f'{path} knows no thresholds: python threshold.py --name {run.about["run"]} chooses some. Then export it again'
    )
    about = {name: run.about[name] for name in ('run', 'which_epoch', 'weights', 'flip', 'test_feature')}
    return Embedder(run, run.size, run.dim, bounds, about | {'ms': '1'})


def described(embedder, sources, batchsize=32, on_bad=None):
    """Paths -> (path, descriptor (D,)) one after the other, in order. What cannot be read is a Problem, or goes to
    on_bad(path, problem) and is left out."""

    def prepared(source):
        try:
            return data.sized(data.read(source), embedder.size)
        except Problem as problem:
            if on_bad is None:
                raise
            return problem

    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(sources), batchsize):
            some = sources[start : start + batchsize]
            good = []
            for source, picture in zip(some, pool.map(prepared, some), strict=True):
                if isinstance(picture, Problem):
                    on_bad(source, picture)
                else:
                    good.append((source, picture))
            if good:
                found = embedder.describe(np.stack([picture for _, picture in good]))
                yield from zip((source for source, _ in good), found, strict=True)
