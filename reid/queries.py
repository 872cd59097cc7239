"""What may become of a query before it is ranked: several pictures of it, or its nearest ones, in one."""

import numpy as np

from reid import product
from reid.nearest import nearest

STEP = 64  # queries at a time


def members(query, pool):
    """For each query the rows of the pool with its identity and camera, which may be none."""
    key = np.stack([pool.ids, pool.cams], 1)
    pairs, inverse = np.unique(key, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind='stable')
    groups = np.split(order, np.cumsum(np.bincount(inverse.ravel(), minlength=len(pairs)))[:-1])
    of = dict(zip(map(tuple, pairs.tolist()), groups, strict=True))
    nobody = np.zeros(0, np.int64)
    return [of.get(own, nobody) for own in zip(query.ids.tolist(), query.cams.tolist(), strict=True)]


def mean_of(query, pool):
    """Multi-query: each feature becomes the mean of all features in the pool with its identity and camera."""
    found = members(query, pool)
    f = np.stack([pool.f[rows].mean(0) if len(rows) else own for rows, own in zip(found, query.f, strict=True)])
    return query._replace(f=unit(f))


def best_of(query, pool, gallery, device='cpu'):
    """Multi-query, the other way: blocks of scores (start, (b, G)), each the best of any of those features."""
    found = members(query, pool)
    for start in range(0, len(found), STEP):
        own = [
            pool.f[rows] if len(rows) else query.f[i, None] for i, rows in enumerate(found[start : start + STEP], start)
        ]
        first = np.cumsum([0] + [len(f) for f in own])
        scores = np.full((len(own), len(gallery.f)), -np.inf, np.float32)
        row = np.repeat(np.arange(len(own)), np.diff(first))
        for at, block in product.similarities(np.concatenate(own), gallery.f, device):
            block = block.cpu().numpy()
            here = row[at : at + len(block)]
            begin = np.flatnonzero(np.diff(here, prepend=-1))
            best = np.maximum.reduceat(block, begin, axis=0)
            scores[here[begin]] = np.maximum(scores[here[begin]], best)
        yield start, scores


def expand(f, others_f, k, alpha=3.0, device='cpu', title=None):
    """Average query expansion: each feature becomes the mean of itself and its k nearest others, each of these
    weighted by its score to the power of alpha (arXiv 1711.02512; 0: the plain mean). With the gallery as its own
    others this is database augmentation: each image is the first of its nearest then, and counts once.
    """
    itself = f is others_f
    image, score = nearest(f, others_f, k + itself, device, title=title)
    weight = (np.maximum(score, 0) ** alpha).astype(np.float32)
    out = np.empty(f.shape, np.float32)
    for start in range(0, len(f), STEP):
        s = slice(start, start + STEP)
        mean = (weight[s, None] @ others_f[image[s]].astype(np.float32, copy=False))[:, 0]  # (q, 1, k) @ (q, k, D)
        out[s] = mean if itself else mean + f[s]
    return unit(out)


def unit(f):
    return f / np.linalg.norm(f, axis=1, keepdims=True)
