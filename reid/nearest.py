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
TILE = 2**25  # numbers of gallery features at a time: 128 MB, where they have to be copied
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
    rows = min(max(1, TILE // gallery_f.shape[1]), len(gallery_f))
    search = (OnGPU if torch.device(device).type == 'cuda' else OnCPU)(k, sizes, rows, gallery_f.shape[1], device)
    image, score = np.full((len(query_f), k), -1), np.full((len(query_f), k), -np.inf)
    lowest = np.full(len(query_f), np.inf)
    total = len(query_f) * len(gallery_f)
    with tqdm(total=total, desc=title, unit='pair', unit_scale=True, disable=None if title else True) as bar:
        for first in range(0, len(gallery_f), rows):
            search.load(gallery_f[first : first + rows])
            for start in range(0, len(query_f), BLOCK):
                block = np.require(query_f[start : start + BLOCK], np.float32, 'CW')
                s = slice(start, start + BLOCK)
                high, low = search.look(block, score[s, -1], lowest[s] if furthest else None)
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
                bar.update(len(block) * min(rows, len(gallery_f) - first))
    return (image, score, lowest) if furthest else (image, score)


class OnCPU:
    """load(tile) of the gallery, then look(block) of queries, the score that each has to reach to matter, and the
    lowest score that each has seen or None -> the Candidates at either end."""

    def __init__(self, k, sizes, rows, dim, device):
        self.k, self.sizes, self.rows, self.dim = k, sizes, rows, dim
        self.grids = product.grid(sizes[0]), product.grid(sizes[1])
        self.halved = product.bfloat16_is_fast()
        self.to_key, self.to_score = (key_of, score_of) if self.halved else (np.float32, np.float64)
        self.copy = None
        if self.halved:  # memory that is asked for anew, tile by tile, takes as long again
            self.gallery = torch.empty(rows, dim, dtype=torch.bfloat16)
            self.scores = torch.empty(BLOCK * rows, dtype=torch.bfloat16)
            self.signs = np.empty(BLOCK * rows, np.int16)

    def load(self, tile):
        if not (tile.dtype == np.float32 and tile.flags.c_contiguous and tile.flags.writeable):
            if self.copy is None:  # torch takes no array that is read-only
                self.copy = np.empty((self.rows, self.dim), np.float32)
            self.copy[: len(tile)] = tile
            tile = self.copy[: len(tile)]
        self.tile = tile
        if self.halved:
            self.lost = product.halve(tile, self.gallery[: len(tile)])
        else:
            self.multiply = product.quick(tile)

    def look(self, block, floor, roof):
        keys, worst = self.quick_keys(block)  # (b, t)
        exact = product.whole(block, self.grids[0])
        if self.halved and roof is not None:
            turn(keys, self.signs)
        reach = self.reach(keys, floor, worst)
        if self.halved and roof is None and (reach <= 0).any():  # rare: below, keys are not in order yet
            reach = self.reach(turn(keys, self.signs), floor, worst)
        high = self.candidates(keys >= reach[:, None], exact)
        if roof is None:
            return high, None
        least = self.to_score(keys.min(1))
        roof = np.minimum(roof, least + worst(least))
        return high, self.candidates(keys <= self.to_key(roof + worst(roof))[:, None], exact)

    def reach(self, keys, floor, worst):
        """The key (b,) that a score has at least, if it may be among the k best and above the floor."""
        if len(self.tile) >= self.k:
            kth = self.to_score(kth_of_groups(keys, self.k))
            floor = np.maximum(floor, kth - worst(kth))
        return self.to_key(floor - worst(floor))

    def quick_keys(self, block):
        """Scores (b, t), as keys that sort like them, and a function of scores: how far they may be off."""
        off, share = product.error(self.dim) * self.sizes[0] * self.sizes[1], 0.0
        if self.halved:
            shape = len(block), len(self.tile)
            query = torch.empty(block.shape, dtype=torch.bfloat16)
            lost = product.halve(block, query)
            scores = self.scores[: shape[0] * shape[1]].view(shape)
            torch.mm(query, self.gallery[: shape[1]].T, out=scores)
            keys = scores.view(torch.int16).numpy()
            # |q.g - q'.g'| <= |q - q'| |g'| + |q| |g - g'|, and a score has 8 bits
            off, share = off + lost * (self.sizes[1] + self.lost) + self.sizes[0] * self.lost, 1 / 255
        else:
            keys = self.multiply(block)
        return keys, lambda score: 1.01 * (off + share * np.nan_to_num(np.abs(score), posinf=0))

    def candidates(self, mask, exact):
        row, image = np.divmod(np.flatnonzero(mask), mask.shape[1])
        ends = np.searchsorted(row, np.arange(len(mask) + 1))
        score = np.empty(len(row))
        for i in np.flatnonzero(np.diff(ends)):
            own = slice(ends[i], ends[i + 1])
            score[own] = product.whole(self.tile[image[own]], self.grids[1]) @ exact[i]
        return Candidates(ends, image, score / (self.grids[0] * self.grids[1]))


def kth_of_groups(keys, k):
    """(b, t) -> (b,): what at least k of each row reach. The k-th of the groups' best: hardly lower than the k-th of
    all, and quicker to find."""
    width = keys.shape[1] // GROUPS
    best = keys[:, : width * GROUPS].reshape(len(keys), GROUPS, width).max(1) if width >= k else keys
    return np.partition(best, best.shape[1] - k, axis=1)[:, best.shape[1] - k]


# bfloat16 is new to numpy. The bits of positive numbers, read as whole numbers, are in the order of the numbers, above
# the bits of all negative ones. Those of negative numbers are in the reverse order until they are turned over.


def turn(keys, room=None):
    """int16 (...), in place. Done twice, it is undone."""
    sign = np.right_shift(keys, 15, out=None if room is None else room[: keys.size].reshape(keys.shape))
    sign &= 0x7FFF
    keys ^= sign
    return keys


def key_of(score):
    return turn(torch.from_numpy(score.astype(np.float32)).bfloat16().view(torch.int16).numpy())


def score_of(keys):
    return torch.from_numpy(turn(keys.copy())).view(torch.bfloat16).double().numpy()


class OnGPU:
    """The same on a GPU, in float32."""

    def __init__(self, k, sizes, rows, dim, device):
        self.k, self.device = k, device
        self.off = 1.01 * product.error(dim) * sizes[0] * sizes[1]
        self.grids = product.grid(sizes[0]), product.grid(sizes[1])

    def load(self, tile):
        self.tile = torch.from_numpy(np.require(tile, np.float32, 'CW')).to(self.device)

    def look(self, block, floor, roof):
        block = torch.from_numpy(block).to(self.device)
        scores = block @ self.tile.T  # (b, t)
        if len(self.tile) >= self.k:
            kth = scores.topk(self.k).values[:, -1].double().cpu().numpy()
            floor = np.maximum(floor, kth - self.off)
        high = self.candidates(scores >= self.column(floor - self.off), block)
        if roof is None:
            return high, None
        least = scores.amin(1).double().cpu().numpy()
        roof = np.minimum(roof, least + self.off)
        return high, self.candidates(scores <= self.column(roof + self.off), block)

    def column(self, limit):
        return torch.from_numpy(limit.astype(np.float32)).to(self.device)[:, None]

    def candidates(self, mask, block):
        row, image = mask.nonzero(as_tuple=True)
        score = []
        for r, i in zip(row.split(2**14), image.split(2**14), strict=True):  # (n, D) float64 at a time
            query, gallery = (
                (block[r].double() * self.grids[0]).round(),
                (self.tile[i].double() * self.grids[1]).round(),
            )
            score.append((query * gallery).sum(1))
        score = torch.cat(score).cpu().numpy() / (self.grids[0] * self.grids[1])
        row, image = row.cpu().numpy(), image.cpu().numpy()
        return Candidates(np.searchsorted(row, np.arange(len(mask) + 1)), image, score)
