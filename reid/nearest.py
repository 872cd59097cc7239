"""Exact nearest neighbours of many queries in a gallery of any size.

Scores are made quickly, in bfloat16 where the CPU knows it, and are off by a bounded error (reid.product). The best of
them say how high a score has to be to matter; the few that may be as high are computed exactly, and sorted.
"""

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm

from reid import product
from reid.problem import Problem

BLOCK = product.BLOCK  # queries at a time
TILE = 2**25  # numbers of gallery features at a time: 128 MB, where they have to be copied
ROWS = 2**16  # of the gallery at a time: what a block of scores takes is bounded as well
GROUPS = 32  # see kth_of_groups


def nearest(query_f, gallery_f, k, device='cpu', furthest=False, title=None):
    """-> images (Q, k) and scores (Q, k), float64, of the k nearest, the best first; equal scores in gallery order.

    With furthest=True the lowest score of each query as well, (Q,). A title shows a progress bar.
    """
    if not 1 <= k <= len(gallery_f):
        raise Problem(f'{k} nearest neighbours are asked for, but there are only {len(gallery_f)} images')
    sizes = product.longest(query_f, 'query'), product.longest(gallery_f, 'gallery')
    rows = max(1, min(TILE // gallery_f.shape[1], ROWS, len(gallery_f)))
    middle = np.mean(gallery_f[:: max(1, len(gallery_f) // 1024)], axis=0, dtype=np.float32)  # roughly
    search = (OnGPU if product.is_cuda(device) else OnCPU)(k, sizes, rows, middle, device)
    image, score = np.full((len(query_f), k), -1), np.full((len(query_f), k), -np.inf)
    lowest = np.full(len(query_f), np.inf)
    total = len(query_f) * len(gallery_f)
    progress = tqdm(total=total, desc=title, unit='pair', unit_scale=True, disable=None if title else True)
    with product.full_float32(), progress as bar:
        for first in range(0, len(gallery_f), rows):
            tile = gallery_f[first : first + rows]
            search.load(tile)
            for start in range(0, len(query_f), BLOCK):
                s = slice(start, start + BLOCK)
                block = np.require(query_f[s], np.float32, 'CW')
                images, scores, low = search.look(block, score[s, -1], lowest[s] if furthest else None)
                images, scores = np.hstack([image[s], first + images]), np.hstack([score[s], scores])
                best = np.argsort(-scores, axis=1, kind='stable')[:, :k]  # earlier tiles come first
                image[s], score[s] = np.take_along_axis(images, best, 1), np.take_along_axis(scores, best, 1)
                if furthest:
                    lowest[s] = np.minimum(lowest[s], low)
                bar.update(len(block) * len(tile))
    return (image, score, lowest) if furthest else (image, score)


class OnCPU:
    """load(tile) of the gallery, then look(block, floor, roof) of queries.

    floor (b,): scores below do not matter; roof (b,): the lowest so far, or None if nobody asks. It returns images of
    the tile and their exact scores, (b, k), the best first, -inf where no more matter; and the lowest scores (b,).
    """

    def __init__(self, k, sizes, rows, middle, device):
        self.k, self.sizes, self.rows, self.dim = k, sizes, rows, len(middle)
        self.grids = product.grid(sizes[0]), product.grid(sizes[1])
        self.halved = product.bfloat16_is_fast()
        self.to_key, self.to_score = (key_of, score_of) if self.halved else (np.float32, np.float64)
        self.copy = None
        if self.halved:  # memory that is asked for anew, tile by tile, takes as long again
            self.middle = torch.from_numpy(middle)
            self.gallery = torch.empty(rows, self.dim, dtype=torch.bfloat16)
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
            self.length, self.lost = product.halve(tile, self.gallery[: len(tile)], self.middle)
        else:
            self.multiply = product.quick(tile)

    def look(self, block, floor, roof):
        keys, shift, worst = self.quick_keys(block)  # (b, t)
        exact = product.exactly(product.whole(block, self.grids[0]), self.tile, self.grids)
        floor = floor - shift
        if self.halved and roof is not None:
            turn(keys, self.signs)
        reach = self.reach(keys, floor, worst)
        if self.halved and roof is None and (reach <= 0).any():  # rare: below, keys are not in order yet
            reach = self.reach(turn(keys, self.signs), floor, worst)
        image, score = np.zeros((len(block), self.k), np.int64), np.full((len(block), self.k), -np.inf)
        for i, images in marked(keys >= reach[:, None]):
            scores = exact(i, images)
            best = np.argsort(-scores, kind='stable')[: self.k]
            image[i, : len(best)], score[i, : len(best)] = images[best], scores[best]
        if roof is None:
            return image, score, None
        least = self.to_score(keys.min(1))
        roof = np.minimum(roof - shift, least + worst(least))
        lowest = np.full(len(block), np.inf)
        for i, images in marked(keys <= self.to_key(roof + worst(roof))[:, None]):
            lowest[i] = exact(i, images).min()
        return image, score, lowest

    def reach(self, keys, floor, worst):
        """The key (b,) that a score has at least, if it may be among the k best and above the floor."""
        if len(self.tile) >= self.k:
            kth = self.to_score(kth_of_groups(keys, self.k))
            floor = np.maximum(floor, kth - worst(kth))
        return self.to_key(floor - worst(floor))

    def quick_keys(self, block):
        """Scores (b, t) less a shift (b,), as keys that sort like them, and a function of these differences: how far
        they may be off."""
        off, share = product.error(self.dim) * self.sizes[0] * self.sizes[1], 0.0
        if not self.halved:
            return self.multiply(block), np.zeros(len(block)), lambda score: off
        # q.g - q.m = q.(g - m): where all features have a part in common, bfloat16 is for what is left of them. Then
        # |q.h - q'.h'| <= |q - q'| |h'| + |q| |h - h'| for h = g - m, and a score has 8 bits.
        shape = len(block), len(self.tile)
        query = torch.empty(block.shape, dtype=torch.bfloat16)
        _, lost = product.halve(block, query)
        scores = self.scores[: shape[0] * shape[1]].view(shape)
        torch.mm(query, self.gallery[: shape[1]].T, out=scores)
        off, share = off + lost * (self.length + self.lost) + self.sizes[0] * self.lost, 1 / 255
        shift = (torch.from_numpy(block).double() @ self.middle.double()).numpy()
        keys = scores.view(torch.int16).numpy()
        return keys, shift, lambda score: 1.01 * (off + share * np.nan_to_num(np.abs(score), posinf=0))


def marked(mask):
    """Row by row where the mask (b, t) is set: (row, columns)."""
    row, column = np.divmod(np.flatnonzero(mask), mask.shape[1])
    ends = np.searchsorted(row, np.arange(len(mask) + 1))
    for i in np.flatnonzero(np.diff(ends)):
        yield i, column[ends[i] : ends[i + 1]]


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

    def __init__(self, k, sizes, rows, middle, device):
        self.k, self.device = k, device
        self.off = 1.01 * product.error(len(middle)) * sizes[0] * sizes[1]
        self.grids = product.grid(sizes[0]), product.grid(sizes[1])

    def load(self, tile):
        self.tile = torch.from_numpy(np.require(tile, np.float32, 'CW')).to(self.device)

    def look(self, block, floor, roof):
        block = torch.from_numpy(block).to(self.device)
        scores = block @ self.tile.T  # (b, t)
        floor = torch.from_numpy(floor.astype(np.float32)).to(self.device)
        if len(self.tile) >= self.k:
            floor = torch.maximum(floor, scores.topk(self.k).values[:, -1] - self.off)
        images, exact = self.candidates(scores >= (floor - self.off)[:, None], block, -torch.inf)
        best = exact.argsort(dim=1, descending=True, stable=True)[:, : self.k]
        more = (0, self.k - best.shape[1])  # where there are fewer than k
        image = functional.pad(images.gather(1, best), more).cpu().numpy()
        score = functional.pad(exact.gather(1, best), more, value=-torch.inf).cpu().numpy()
        if roof is None:
            return image, score, None
        roof = torch.from_numpy(roof.astype(np.float32)).to(self.device)
        roof = torch.minimum(roof, scores.amin(1) + self.off)
        _, exact = self.candidates(scores <= (roof + self.off)[:, None], block, torch.inf)
        return image, score, exact.amin(1).cpu().numpy()

    def candidates(self, mask, block, nothing):
        """Where the mask is set: images and exact scores, (b, most of any row), filled up with nothing."""
        row, image = mask.nonzero(as_tuple=True)
        exact = []
        for r, i in zip(row.split(product.STEP), image.split(product.STEP), strict=True):  # (n, D) float64 at a time
            query, gallery = block[r].double() * self.grids[0], self.tile[i].double() * self.grids[1]
            exact.append((query.round() * gallery.round()).sum(1))
        count = mask.sum(1)
        place = torch.arange(len(row), device=self.device) - (count.cumsum(0) - count)[row]
        images = torch.zeros(len(mask), max(int(count.max()), 1), dtype=torch.int64, device=self.device)
        scores = torch.full(images.shape, nothing, dtype=torch.float64, device=self.device)
        images[row, place] = image
        scores[row, place] = torch.cat(exact) / (self.grids[0] * self.grids[1])
        return images, scores
