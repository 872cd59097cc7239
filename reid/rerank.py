"""k-reciprocal re-ranking, arXiv 1701.08398: neighbours that name each other are worth more than a close distance.

The published code fills a matrix of (queries + gallery)^2. Here everything lives in sparse rows: an image shares
entries with a few hundred others at most, and all the rest are at Jaccard distance 1. The numbers are the same.

Names as in the paper: N(p, k) the k nearest neighbours, R(p, k) the reciprocal ones, R* the expanded set, V the
weights of R*, k1, k2 and lambda. n = queries + gallery.
"""

import numpy as np
from scipy import sparse
from tqdm import tqdm

from reid import product
from reid.nearest import nearest
from reid.problem import Problem

# What the weights and the final mix start from: c cosine -> distance. Both are then divided by each image's largest.
DISTANCES = {
    'squared': lambda c: (2 - 2 * c) ** 2,  # as the PyTorch baseline does it
    'plain': lambda c: 2 - 2 * c,  # as the strong baseline does it: the squared Euclidean distance
}


def rerank(query_f, gallery_f, k1=20, k2=6, lambda_value=0.3, distance='squared', device='cpu'):
    """Blocks of scores (start, (b, G) float32): minus the final distance, for reid.ranking."""
    if max(k1, k2) > len(gallery_f):
        name, k = ('k1', k1) if k1 >= k2 else ('k2', k2)
        raise Problem(f'--{name} {k}: the gallery holds only {len(gallery_f)} images, and that many neighbours at most')
    f = np.concatenate([query_f, gallery_f]).astype(np.float32, copy=False)
    of = DISTANCES[distance]
    neighbours, _, lowest = nearest(f, f, max(k1 + 1, k2), device, furthest=True, title='neighbours')
    neighbours = neighbours.astype(np.int32)
    largest = np.maximum(of(lowest), np.finfo(np.float32).tiny)  # (n,); 0 where all features are the same
    expanded = expand(reciprocal(neighbours, k1 + 1), reciprocal(neighbours, int(np.around(k1 / 2)) + 1))
    V = weights(expanded, f, of, largest)
    if k2 > 1:  # local query expansion: the mean of the k2 nearest rows
        V = (membership(neighbours[:, :k2]) @ V).tocsr() * np.float32(1 / k2)

    # From here on only shared entries count: those of a query, and for each entry the gallery images that have it.
    Q = len(query_f)
    columns = V[Q:].tocsc()
    V = V[:Q]
    with tqdm(total=Q, desc='re-ranking', unit='query', disable=None) as bar:
        for start, c in product.similarities(f[:Q], f[Q:], device):
            c = of(c)
            c *= (lambda_value / largest[start : start + len(c), None]).astype(np.float32)
            for i, row in enumerate(c, start):
                entries = slice(V.indptr[i], V.indptr[i + 1])
                row += np.float32(1 - lambda_value) * jaccard_distance(V.indices[entries], V.data[entries], columns)
            yield start, np.negative(c, out=c)
            bar.update(len(c))


def membership(neighbours):
    """(n, k) indices -> (n, n) sparse, 1 where j is among the neighbours of i."""
    n, k = neighbours.shape
    return sparse.csr_array((np.ones(n * k, np.float32), neighbours.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))


def reciprocal(neighbours, k):
    """R(p, k): j is among the first k of i, and i among the first k of j."""
    N = membership(neighbours[:, :k])
    return N.multiply(N.T).tocsr()


def expand(R, half):
    """R*(p): R(p, k1), and R(q, k1/2) of every q in it if more than two thirds of that lie in R(p, k1)."""
    shared = (R @ half.T).multiply(R).tocoo()  # |R(p, k1) & R(q, k1/2)| for each q in R(p, k1)
    size = half.sum(1)
    accepted = shared.data > 2 / 3 * size[shared.col]
    taken = sparse.csr_array(
        (np.ones(accepted.sum(), np.float32), (shared.row[accepted], shared.col[accepted])), R.shape
    )
    return (R + taken @ half).tocsr()


def weights(expanded, f, of, largest):
    """V: exp(-distance) over R*(p), each row summing to 1."""
    V = expanded.astype(np.float32)
    V.eliminate_zeros()
    for i, own in enumerate(map(slice, V.indptr[:-1], V.indptr[1:])):
        weight = np.exp(-of(f[V.indices[own]] @ f[i]) / largest[i])
        V.data[own] = weight / weight.sum()
    return V


def jaccard_distance(entries, values, columns):
    """1 - sum min / sum max, between one sparse row of V (its sum is 1) and all gallery rows (given by columns)."""
    spans = [slice(columns.indptr[j], columns.indptr[j + 1]) for j in entries]
    image = np.concatenate([columns.indices[span] for span in spans])  # never empty: an image neighbours itself
    theirs = np.concatenate([columns.data[span] for span in spans])
    ours = np.repeat(values, [span.stop - span.start for span in spans])
    least = np.bincount(image, np.minimum(ours, theirs), columns.shape[0])  # sum of minima
    return 1 - least / (2 - least)
