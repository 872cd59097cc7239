"""A large index in files (reid.index_files), of which a query looks at a part only: faiss, pip install faiss-cpu.

Its inverted lists (IVF) gather rows around centres; a query looks into the lists whose centres are nearest to it. What
it finds there is scored again, exactly: scores and their order are those of the exact engine, but now and then it
misses somebody. Where there are fewer than LARGE to look at, all of them or all that is asked for, they are looked at
one by one, as without faiss.

Finding the centres takes longest, so these are kept beside the index, as numbers: <folder>/centres-<how many>.npy.
Wrong ones make it slow or forgetful, never wrong. (faiss.read_index is not used: it trusts the files that it reads.)
The lists hold a copy of all vectors in memory, in each process that searches.
"""

from contextlib import suppress

import numpy as np

from reid import index_exact
from reid.files import replacing
from reid.problem import Problem

LARGE = 50_000  # rows to look at
SHARE = 16  # of the lists, one in so many is looked into
SAMPLE = 40  # rows of each list, to find its centre
PIECE = 2**14  # rows at a time


class Search:
    """What index_files.Index.search is replaced by. It grows with the index, whose rows are only ever appended."""

    def __init__(self, folder):
        try:
            import faiss
        except ImportError:
            raise Problem('the engine faiss is a package that is not here: pip install faiss-cpu') from None
        self.faiss, self.folder, self.file, self.lists = faiss, folder, None, None

    def __call__(self, now, places, queries, k):
        if len(places) < LARGE:
            return index_exact.search(now, places, queries, k)
        self.catch_up(now)
        rows, probes = now.rows[places], max(1, self.lists.nlist // SHARE)
        how = self.faiss.SearchParametersIVF(nprobe=probes)
        if len(rows) < len(now.vectors):
            mask = np.zeros(len(now.vectors), np.uint8)
            mask[rows] = 1
            chosen = np.packbits(mask, bitorder='little')
            how = self.faiss.SearchParametersIVF(nprobe=probes, sel=self.faiss.IDSelectorBitmap(chosen))
        # More than k, since quick scores of some may be a bit too low.
        _, candidates = self.lists.search(queries, min(2 * k + 16, len(rows)), params=how)
        found = []
        for query, those in zip(queries, candidates, strict=True):
            those = np.sort(those[those >= 0])
            if len(those) < min(k, len(rows)):  # the lists that it looked into have no more
                found += index_exact.search(now, places, query[None], k)
                continue
            scores = index_exact.exact(query, now.vectors[those])
            order = index_exact.best(scores, k)
            found.append((np.searchsorted(now.rows, those[order]), scores[order]))
        return found

    def catch_up(self, now):
        """Rows that have come since, and all of them if their number asks for other lists."""
        count = 2 ** round(np.log2(4 * len(now.rows) ** 0.5))
        if now.file != self.file or count != self.lists.nlist:
            quantizer = self.faiss.IndexFlatIP(now.vectors.shape[1])
            quantizer.add(self.centres(now, count))
            inner = self.faiss.METRIC_INNER_PRODUCT
            self.lists = self.faiss.IndexIVFFlat(quantizer, quantizer.d, count, inner)
            self.lists.is_trained, self.file = True, now.file
        for start in range(self.lists.ntotal, len(now.vectors), PIECE):
            self.lists.add(np.array(now.vectors[start : start + PIECE]))

    def centres(self, now, count):
        """(count, D), from the file, or by k-means of some rows."""
        path, shape = self.folder / f'centres-{count}.npy', (count, now.vectors.shape[1])
        with suppress(OSError, ValueError, EOFError):
            centres = np.load(path, allow_pickle=False)
            if centres.shape == shape and centres.dtype == np.float32 and np.isfinite(centres).all():
                return centres
        rows = np.random.default_rng(0).choice(now.rows, min(len(now.rows), SAMPLE * count), replace=False)
        means = self.faiss.Kmeans(shape[1], count, niter=10, spherical=True, seed=0, min_points_per_centroid=1)
        means.train(np.array(now.vectors[np.sort(rows)]))
        with suppress(OSError), replacing(path) as temporary, temporary.open('wb') as file:
            np.save(file, means.centroids)
        return means.centroids
