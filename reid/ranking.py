"""The protocol of the field: which gallery images count, in which order, and the figures that follow.

For one query, a gallery image is
    junk    if its identity is -1, or it is the same identity seen by the same camera: taken out before ranking;
    good    if it is the same identity seen by another camera;
    wrong   otherwise (the distractors, identity 0, among them).
Everything that is reported follows from the ranks of the good images alone, so nothing is sorted here: the rank of a
good image is the number of gallery images, junk left out, that score higher.
"""

import numpy as np
import torch

from reid.problem import Problem

BLOCK = 256  # queries at a time: scores take BLOCK x gallery floats, never queries x gallery


def judge(query_id, query_cam, gallery_id, gallery_cam):
    """One query against the gallery -> (good, junk), two boolean arrays. A camera of -1 is unknown: never the same."""
    same = gallery_id == query_id
    same_camera = (gallery_cam == query_cam) & (gallery_cam != -1)
    junk = (gallery_id == -1) | (same & same_camera)
    return same & ~junk, junk


def similarities(query_f, gallery_f, device='cpu'):
    """Blocks of cosine similarities, (start, (b, G) float32), of features of unit length."""
    if torch.device(device).type == 'cpu':  # numpy's product is the faster one on most CPUs
        for start in range(0, len(query_f), BLOCK):
            yield start, query_f[start : start + BLOCK] @ gallery_f.T
    else:
        gallery = torch.from_numpy(gallery_f).to(device)
        for start in range(0, len(query_f), BLOCK):
            block = torch.from_numpy(query_f[start : start + BLOCK]).to(device)
            yield start, (block @ gallery.T).cpu().numpy()


def ranks(blocks, query_id, query_cam, gallery_id, gallery_cam):
    """For each query the ranks (0 = first) of its good images, ascending. Equal scores rank in gallery order."""
    found = []
    for start, scores in blocks:
        if np.isnan(scores).any():
            raise Problem('the features hold nan: the network that made them did not learn (try a lower --lr)')
        for i, row in enumerate(scores, start):
            good, junk = judge(query_id[i], query_cam[i], gallery_id, gallery_cam)
            row[junk] = -np.inf
            found.append(rank_of(row, np.flatnonzero(good)))
    return found


def rank_of(row, chosen):
    """The places that row[chosen] takes when row is sorted from high to low, ties in order of position."""
    bar = row[chosen, None]  # (n, 1)
    above = np.count_nonzero(row > bar, axis=1)
    tied = np.count_nonzero(row == bar, axis=1) > 1  # rare: besides itself, another image has the very same score
    for i in np.flatnonzero(tied):
        above[i] += np.count_nonzero(row[: chosen[i]] == bar[i])
    return np.sort(above)


def figures(ranks):
    """Ranks of good images, one array a query -> the dict that metrics.json holds (fractions, not percent).

    Two average precisions are in use and differ by up to a point. With r_i the rank of the i-th of n good images:
        trapezoid (Market-1501's own code)   AP = sum_i ((i+1)/(r_i+1) + (i/r_i, or 1 where r_i = 0)) / 2n
        standard  (most other projects)      AP = sum_i (i+1)/(r_i+1) / n
    mINP, arXiv 2001.04193: n / (rank of the last good image, from 1). A query without a good image counts as a miss in
    Rank-k and in the trapezoid mAP, and is left out of the standard mAP and mINP, each as its own community does.
    """
    answerable = [r for r in ranks if len(r)]
    if not answerable:
        raise Problem(
            'no query has a good image (same identity, another camera): are the identities and cameras right?'
        )
    first = np.array([r[0] for r in answerable])
    trapezoid, standard, inp = [], [], []
    for r in answerable:
        i = np.arange(len(r))
        precision = (i + 1) / (r + 1)
        before = np.where(r == 0, 1.0, i / np.maximum(r, 1))
        trapezoid.append(((precision + before) / 2).mean())
        standard.append(precision.mean())
        inp.append(len(r) / (r[-1] + 1))
    return {
        'rank1': float((first < 1).sum() / len(ranks)),
        'rank5': float((first < 5).sum() / len(ranks)),
        'rank10': float((first < 10).sum() / len(ranks)),
        'map_trapezoid': float(np.sum(trapezoid) / len(ranks)),
        'map_standard': float(np.mean(standard)),
        'minp': float(np.mean(inp)),
        'queries': len(ranks),
        'queries_without_good': len(ranks) - len(answerable),
    }


def evaluate(query, gallery, device='cpu', blocks=None):
    """Two `Features` (reid.results) -> the figures. `blocks` replaces the cosine similarities, as re-ranking does."""
    blocks = similarities(query.f, gallery.f, device) if blocks is None else blocks
    return figures(ranks(blocks, query.ids, query.cams, gallery.ids, gallery.cams))


def multi_query(query, pool):
    """Each query's feature becomes the mean of all features in the pool with its identity and camera, if there are any.

    A mean is not of unit length, which changes no order within a query.
    """
    key = np.stack([pool.ids, pool.cams], 1)
    pairs, inverse = np.unique(key, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind='stable')
    starts = np.searchsorted(inverse.ravel()[order], np.arange(len(pairs)))
    sums = np.add.reduceat(pool.f[order], starts, axis=0)
    counts = np.diff([*starts, len(order)])[:, None].astype(np.float32)
    mean = dict(zip(map(tuple, pairs.tolist()), sums / counts, strict=True))
    own = zip(query.f, query.ids.tolist(), query.cams.tolist(), strict=True)
    return query._replace(f=np.stack([mean.get((i, c), f) for f, i, c in own]))
