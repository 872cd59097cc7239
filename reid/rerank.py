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

from reid import product
from reid.nearest import nearest
from reid.problem import Problem

PAIRS = 2**19  # of shared entries at a time

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
    device = device if product.is_cuda(device) else 'cpu'
    f = np.concatenate([query_f, gallery_f]).astype(np.float32, copy=False)
    of = DISTANCES[distance]
    neighbours, _, lowest = nearest(f, f, max(k1 + 1, k2), device, furthest=True, title='neighbours')
    neighbours = neighbours.astype(np.int32)
    largest = np.maximum(of(lowest), np.finfo(np.float32).tiny)  # (n,); 0 where all features are the same
    expanded = expand(reciprocal(neighbours, k1 + 1), reciprocal(neighbours, int(np.around(k1 / 2)) + 1))
    V = weights(expanded, f, of, largest, device)
    if k2 > 1:  # local query expansion: the mean of the k2 nearest rows
        V = (membership(neighbours[:, :k2]) @ V).tocsr() * np.float32(1 / k2)

    # From here on only shared entries count: those of a query, and for each entry the gallery images that have it.
    Q = len(query_f)
    entries, columns = Sparse(V[:Q], device), Sparse(V[Q:].tocsc(), device)
    del V
    largest = torch.from_numpy(largest.astype(np.float32)).to(device)
    with tqdm(total=Q, desc='re-ranking', unit='query', disable=None) as bar:
        for start, c in product.similarities(f[:Q], f[Q:], device):  # (b, G)
            rows = slice(start, start + len(c))
            overlap = shared(entries, columns, rows, len(gallery_f))
            overlap /= 2 - overlap  # sum min / sum max: rows of V sum to 1
            jaccard = overlap.neg_().add_(1)
            distance = of(c).mul_(lambda_value / largest[rows, None]).add_(jaccard, alpha=1 - lambda_value)
            del overlap, jaccard  # blocks are large: no two of them longer than needed
            yield start, distance.neg_()
            del distance
            bar.update(len(c))


class Sparse:
    """A sparse matrix of scipy, row by row or column by column, as tensors on a device."""

    def __init__(self, matrix, device):
        self.starts = torch.from_numpy(matrix.indptr.astype(np.int64)).to(device)
        self.indices = torch.from_numpy(matrix.indices).to(device)
        self.data = torch.from_numpy(matrix.data).to(device)


def shared(entries, columns, rows, n):
    """sum_e min(V[i, e], V[j, e]) of the queries i in `rows` and all n gallery images j -> (b, n)."""
    starts = entries.starts[rows.start : rows.stop + 1]
    b, device = len(starts) - 1, starts.device
    query = torch.repeat_interleave(torch.arange(b, device=device), starts.diff())  # of each entry
    own = slice(int(starts[0]), int(starts[-1]))
    entry, value = entries.indices[own], entries.data[own]
    first, count = columns.starts[entry], columns.starts[entry + 1] - columns.starts[entry]
    out = torch.zeros(b * n, device=device)
    # An image that is near to everyone has as many pairs as there are images: so a bounded number at a time.
    part = (count.cumsum(0) // PAIRS).unique_consecutive(return_counts=True)[1].tolist()
    pieces = zip(*(tensor.split(part) for tensor in (query, value, first, count)), strict=True)
    for query_, value_, first_, count_ in pieces:
        which = torch.repeat_interleave(torch.arange(len(count_), device=device), count_)  # entry of each pair
        at = torch.arange(len(which), device=device) + (first_ - count_.cumsum(0) + count_)[which]
        least = torch.minimum(value_[which], columns.data[at])
        out.index_add_(0, query_[which] * n + columns.indices[at], least)
    return out.view(b, n)


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


def weights(expanded, f, of, largest, device):
    """V: exp(-distance) over R*(p), each row summing to 1."""
    V = expanded.astype(np.float32)
    V.eliminate_zeros()
    rows = np.repeat(np.arange(len(f)), np.diff(V.indptr))
    V.data = np.exp(-of(product.pair_scores(f, V.indptr, V.indices, device)) / largest[rows]).astype(np.float32)
    V.data /= np.bincount(rows, V.data, len(f))[rows]
    return V
