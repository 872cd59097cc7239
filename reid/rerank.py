"""k-reciprocal re-ranking, arXiv 1701.08398: neighbours that name each other are worth more than a close distance.

The published code fills a matrix of (queries + gallery)^2. Here everything lives in sparse rows: an image shares
entries with a few hundred others at most, and all the rest are at Jaccard distance 1. The numbers are the same.

Names as in the paper: N(p, k) the k nearest neighbours, R(p, k) the reciprocal ones, R* the expanded set, V the
weights of R*, k1, k2 and lambda. n = queries + gallery.
"""

import numpy as np
import torch
from scipy import sparse
from tqdm import tqdm

from reid.ranking import BLOCK, similarities

# What the weights and the final mix start from: c cosine -> distance. Both are then divided by each image's largest.
DISTANCES = {
    'squared': lambda c: (2 - 2 * c) ** 2,  # as the PyTorch baseline does it
    'plain': lambda c: 2 - 2 * c,  # as the strong baseline does it: the squared Euclidean distance
}


def rerank(query_f, gallery_f, k1=20, k2=6, lambda_value=0.3, distance='squared', device='cpu'):
    """Blocks of scores (start, (b, G) float32): minus the final distance, for reid.ranking."""
    f = np.concatenate([query_f, gallery_f])
    of = DISTANCES[distance]
    k1, k2 = min(k1, len(f) - 1), min(k2, len(f) - 1)
    neighbours, furthest = nearest(f, k1 + 1, device)
    largest = np.maximum(of(furthest), np.finfo(np.float32).tiny)  # (n,); 0 where all features are the same
    expanded = expand(reciprocal(neighbours, k1 + 1), reciprocal(neighbours, int(np.around(k1 / 2)) + 1))
    V = weights(expanded, f, of, largest)
    if k2 > 1:  # local query expansion: the mean of the k2 nearest rows
        V = (membership(neighbours[:, :k2]) @ V / k2).tocsr().astype(np.float32)

    Q = len(query_f)
    columns = V[Q:].tocsc()  # for each entry the gallery images that have it
    for start, c in progress(similarities(query_f, gallery_f, device), Q, 're-ranking'):
        original = of(c) / largest[start : start + len(c), None]
        rows = [slice(V.indptr[i], V.indptr[i + 1]) for i in range(start, start + len(c))]
        jaccard = np.stack([jaccard_distance(V.indices[row], V.data[row], columns) for row in rows])
        yield start, -((1 - lambda_value) * jaccard + lambda_value * original).astype(np.float32)


def nearest(f, k, device):
    """(n, k) indices of the nearest, itself among them, and (n,) the lowest cosine of each row."""
    indices, lowest = np.empty((len(f), k), np.int64), np.empty(len(f), np.float32)
    for start, c in progress(similarities(f, f, device), len(f), 'neighbours'):  # c (b, n)
        indices[start : start + len(c)] = torch.from_numpy(c).topk(k, dim=1).indices
        lowest[start : start + len(c)] = c.min(1)
    return indices, lowest


def progress(blocks, n, title):
    return tqdm(blocks, total=-(-n // BLOCK), desc=title, unit='block', disable=None)


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
    rows = np.repeat(np.arange(len(f)), np.diff(V.indptr))
    for start in range(0, V.nnz, 2**16):  # pairs of rows, a bounded number at a time
        s = slice(start, start + 2**16)
        c = np.einsum('ij,ij->i', f[rows[s]], f[V.indices[s]])
        V.data[s] = np.exp(-of(c) / largest[rows[s]])
    V.data /= np.bincount(rows, V.data, len(f))[rows]
    return V


def jaccard_distance(entries, values, columns):
    """1 - sum min / sum max, between one sparse row of V (its sum is 1) and all gallery rows (given by columns)."""
    spans = [slice(columns.indptr[j], columns.indptr[j + 1]) for j in entries]
    image = np.concatenate([columns.indices[span] for span in spans])  # never empty: an image neighbours itself
    theirs = np.concatenate([columns.data[span] for span in spans])
    ours = np.repeat(values, [span.stop - span.start for span in spans])
    least = np.bincount(image, np.minimum(ours, theirs), columns.shape[0])  # sum of minima
    return 1 - least / (2 - least)
