"""The score of a pair in an index (reid.index), and the search that looks at all of them."""

import numpy as np

from reid import nearest, product

GRID = product.grid(1.0)  # of all scores: vectors are of unit length
TILE = 2**15  # rows, and queries, that are looked at together
QUERIES = 64


def exact(query, vectors):
    """The scores (N,) of query (D,) and vectors (N, D): float64, of which no addition is ever rounded."""
    return product.whole(vectors, GRID) @ product.whole(query, GRID) / GRID**2


def best(scores, k):
    """The places of the k best, the best first, equal ones in order."""
    return np.argsort(-scores, kind='stable')[:k]


def search(now, places, queries, k):
    """places of `now` in which to look -> for each query (places, scores), the best first.

    Quick scores say which may be among the k best. Those are computed exactly.
    """
    k = min(k, len(places))
    rows, off = now.rows[places], 1.01 * product.error(queries.shape[1]) + 2.0**-23
    found = [(np.empty(0, np.int64), np.empty(0)) for _ in queries]
    for start in range(0, len(now.vectors), TILE):
        inside = slice(*np.searchsorted(rows, (start, start + TILE)))
        own, tile = rows[inside] - start, now.vectors[start : start + TILE]
        if len(own) < len(tile) / 4:
            own, tile = np.arange(len(own)), tile[own]
        for first in range(0, len(queries) if len(own) else 0, QUERIES):
            block = queries[first : first + QUERIES]
            quick = block @ tile.T  # (b, t)
            quick = quick if len(own) == len(tile) else quick[:, own]
            floor = [scores[-1] if len(scores) == k else -np.inf for _, scores in found[first : first + QUERIES]]
            if len(own) >= k:
                floor = np.maximum(floor, nearest.kth_of_groups(quick, k).astype(np.float64) - off)
            score_of = product.exactly(product.whole(block, GRID), tile, (GRID, GRID))
            reach = np.float32(np.subtract(floor, off))
            for i, those in nearest.marked(quick >= reach[:, None]):
                before, scores = found[first + i]
                scores = np.append(scores, score_of(i, own[those]))
                order = best(scores, k)  # equal scores: earlier tiles come first
                found[first + i] = np.append(before, places[inside][those])[order], scores[order]
    return found
