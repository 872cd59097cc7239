"""What may become of a query before it is ranked: several pictures of it, or its nearest ones, in one."""

import numpy as np

from reid import product
from reid.nearest import nearest
from reid.problem import Problem

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
    means = [own_of(i, rows, query, pool).mean(0) for i, rows in enumerate(members(query, pool))]
    return query._replace(f=unit(np.stack(means)))


def best_of(query, pool, gallery, device='cpu'):
    """Multi-query, the other way: blocks of exact scores (start, (b, G)), each the best of any of those features."""
    found = members(query, pool)
    step = max(1, min(STEP, product.SCORES // len(gallery.f)))
    size = max(product.longest(query.f, 'query'), product.longest(pool.f, 'multi-query'))
    grids = product.grid(size), product.grid(product.longest(gallery.f, 'gallery'))
    for start in range(0, len(found), step):
        own = [own_of(i, rows, query, pool) for i, rows in enumerate(found[start : start + step], start)]
        row = np.repeat(np.arange(len(own)), [len(f) for f in own])
        scores = np.full((len(own), len(gallery.f)), -np.inf)
        for at, block in product.exact_scores(np.concatenate(own), gallery.f, grids, device):
            here = row[at : at + len(block)]
            begin = np.flatnonzero(np.diff(here, prepend=-1))
            best = np.maximum.reduceat(block, begin, axis=0)
            scores[here[begin]] = np.maximum(scores[here[begin]], best)
        yield start, scores


def own_of(i, rows, query, pool):
    """The features of query i: those rows of the pool, or its own if there are none."""
    return np.asarray(pool.f[rows] if len(rows) else query.f[i, None], np.float32)


def expand(f, others_f, k, alpha=3.0, device='cpu', title='k'):
    """Average query expansion: each feature becomes the mean of itself and its k nearest others, each of these
    weighted by its score to the power of alpha (arXiv 1711.02512; 0: the plain mean). With the gallery as its own
    others this is database augmentation: each image is the first of its nearest then, and counts once.
    """
    itself = f is others_f
    if k + itself > len(others_f):
        raise Problem(f'--{title} {k}: there are only {len(others_f) - itself} images to take it from')
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
