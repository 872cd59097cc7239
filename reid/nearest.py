"""Exact nearest neighbours of many queries in a gallery of any size.

Scores are made quickly, in bfloat16 where the CPU knows it, and are off by a bounded error (reid.product). The best of
them say how high a score has to be to matter; the few that may be as high are computed exactly, and sorted.
"""

from collections import namedtuple

import numpy as np
import torch
from tqdm import tqdm

from reid import product
from reid.problem import Problem

BLOCK = 256  # queries at a time
TILE = 2**26  # numbers of gallery features at a time: 256 MB, where they have to be copied
GROUPS = 32  # see kth_of_groups

# Of a block of queries (b, D): those of row i are ends[i] to ends[i + 1], images of the tile and their exact scores.
Candidates = namedtuple('Candidates', 'ends image score')


def nearest(query_f, gallery_f, k, device='cpu', furthest=False, title=None):
    """-> images (Q, k) and scores (Q, k), float64, of the k nearest, the best first; equal scores in gallery order.

    With furthest=True the lowest score of each query as well, (Q,). A title shows a progress bar.
    """
    if not 1 <= k <= len(gallery_f):
        raise Problem(f'{k} nearest neighbours are asked for, but there are only {len(gallery_f)} images')
    sizes = product.longest(query_f, 'query'), product.longest(gallery_f, 'gallery')
    search = on_gpu if torch.device(device).type == 'cuda' else on_cpu
    image, score = np.full((len(query_f), k), -1), np.full((len(query_f), k), -np.inf)
    lowest = np.full(len(query_f), np.inf)
    rows = max(1, TILE // gallery_f.shape[1])
    total = len(query_f) * len(gallery_f)
    with tqdm(total=total, desc=title, unit='pair', unit_scale=True, disable=None if title else True) as bar:
        for first in range(0, len(gallery_f), rows):
            tile = np.require(gallery_f[first : first + rows], np.float32, 'CW')
            look = search(tile, k, sizes, device)
            for start in range(0, len(query_f), BLOCK):
                block = np.require(query_f[start : start + BLOCK], np.float32, 'CW')
                s = slice(start, start + BLOCK)
                high, low = look(block, score[s, -1], lowest[s] if furthest else None)
                for i in np.flatnonzero(np.diff(high.ends)):
                    new = slice(high.ends[i], high.ends[i + 1])
                    images = np.append(image[start + i], first + high.image[new])
                    scores = np.append(score[start + i], high.score[new])
                    best = np.argsort(-scores, kind='stable')[:k]
                    image[start + i], score[start + i] = images[best], scores[best]
                if furthest:
                    for i in np.flatnonzero(np.diff(low.ends)):
                        new = low.score[low.ends[i] : low.ends[i + 1]]
                        lowest[start + i] = min(lowest[start + i], new.min())
                bar.update(len(block) * len(tile))
    return (image, score, lowest) if furthest else (image, score)


def on_cpu(tile, k, sizes, device):
    """A tile of the gallery (t, D) -> a function of a block of queries, of the score that each has to reach to matter,
    and of the lowest score that each has seen or None; it gives the Candidates at either end."""
    make = in_bfloat16 if product.bfloat16_is_fast() else in_float32
    keys_of, to_key, to_score = make(tile, sizes)
    grids = product.grid(sizes[0]), product.grid(sizes[1])

    def look(block, floor, roof):
        keys, worst = keys_of(block)  # (b, t)
        exact = product.whole(block, grids[0])
        kth = to_score(kth_of_groups(keys, k)) if len(tile) >= k else np.full(len(block), -np.inf)
        floor = np.maximum(floor, kth - worst(kth))
        high = candidates(keys >= to_key(floor - worst(floor))[:, None], exact, tile, grids)
        if roof is None:
            return high, None
        least = to_score(keys.min(1))
        roof = np.minimum(roof, least + worst(least))
        return high, candidates(keys <= to_key(roof + worst(roof))[:, None], exact, tile, grids)

    return look


def in_float32(tile, sizes):
    """How scores are made, as keys that sort like them; a score's key, a key's score. With the keys of a block comes a
    function of scores: how far they may be off."""
    multiply, worst = product.quick(tile), errors(sizes, tile.shape[1])
    return lambda block: (multiply(block), worst), np.float32, np.float64


def in_bfloat16(tile, sizes):
    """The same in bfloat16: |q.g - q'.g'| <= |q - q'| |g'| + |q| |g - g'|, and its scores have 8 bits."""
    gallery, lost = product.halve(tile)
    scores = torch.empty(BLOCK, len(tile), dtype=torch.bfloat16)  # memory that is asked for anew takes as long again

    def keys_of(block):
        query, missed = product.halve(block)
        torch.mm(query, gallery.T, out=scores[: len(block)])
        off = missed * (sizes[1] + lost) + sizes[0] * lost
        return sortable(scores[: len(block)]), errors(sizes, tile.shape[1], off, 1 / 255)

    return keys_of, key_of, score_of


def errors(sizes, dim, off=0.0, share=0.0):
    """A function of scores: how far they may be off. An infinite one stays what it is."""
    off += product.error(dim) * sizes[0] * sizes[1]
    return lambda score: 1.01 * (off + share * np.nan_to_num(np.abs(score), posinf=0))


def candidates(mask, exact, tile, grids):
    row, image = np.divmod(np.flatnonzero(mask), mask.shape[1])
    ends = np.searchsorted(row, np.arange(len(mask) + 1))
    score = np.empty(len(row))
    for i in np.flatnonzero(np.diff(ends)):
        own = slice(ends[i], ends[i + 1])
        score[own] = product.whole(tile[image[own]], grids[1]) @ exact[i]
    return Candidates(ends, image, score / (grids[0] * grids[1]))


def kth_of_groups(keys, k):
    """(b, t) -> (b,): what at least k of each row reach. The k-th of the groups' best: hardly lower than the k-th of
    all, and quicker to find."""
    width = keys.shape[1] // GROUPS
    best = keys[:, : width * GROUPS].reshape(len(keys), GROUPS, width).max(1) if width >= k else keys
    return np.partition(best, best.shape[1] - k, axis=1)[:, best.shape[1] - k]


# bfloat16 is new to numpy. Its bits, read as whole numbers, are in the order of the numbers that they stand for, once
# those of negative numbers are turned over.


def sortable(scores):
    """A tensor of bfloat16 -> its keys, an array of int16 in the same order. It is turned over in place."""
    keys = scores.view(torch.int16).numpy()
    sign = keys >> 15
    sign &= 0x7FFF
    keys ^= sign
    return keys


def key_of(score):
    return sortable(torch.from_numpy(score.astype(np.float32)).bfloat16())


def score_of(keys):
    bits = sortable(torch.from_numpy(keys.copy()))  # turned over once more they are what they were
    return torch.from_numpy(bits).view(torch.bfloat16).double().numpy()


def on_gpu(tile, k, sizes, device):
    """The same on a GPU, in float32."""
    tile = torch.from_numpy(tile).to(device)
    worst = errors(sizes, tile.shape[1])
    grids = product.grid(sizes[0]), product.grid(sizes[1])

    def look(block, floor, roof):
        block = torch.from_numpy(block).to(device)
        scores = block @ tile.T  # (b, t)
        kth = scores.topk(k).values[:, -1].double().cpu().numpy() if len(tile) >= k else np.full(len(block), -np.inf)
        floor = np.maximum(floor, kth - worst(kth))
        high = pick(scores >= column(floor - worst(floor)), block)
        if roof is None:
            return high, None
        least = scores.amin(1).double().cpu().numpy()
        roof = np.minimum(roof, least + worst(least))
        return high, pick(scores <= column(roof + worst(roof)), block)

    def column(limit):
        return torch.from_numpy(limit.astype(np.float32)).to(device)[:, None]

    def pick(mask, block):
        row, image = mask.nonzero(as_tuple=True)
        parts = zip(row.split(2**14), image.split(2**14), strict=True)
        exact = [(on_grid(block[r], grids[0]) * on_grid(tile[i], grids[1])).sum(1) for r, i in parts]
        score = torch.cat(exact).cpu().numpy() / (grids[0] * grids[1])
        row, image = row.cpu().numpy(), image.cpu().numpy()
        return Candidates(np.searchsorted(row, np.arange(len(mask) + 1)), image, score)

    return look


def on_grid(f, factor):
    return (f.double() * factor).round()
