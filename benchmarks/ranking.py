"""What ranking costs on this machine, as ratios to the bare matrix product of the same sizes in the same run.

Reads:   nothing: features are drawn, shaped like those of Market-1501
Writes:  results/ranking.csv; with --plot also results/ranking.png
Run:     python benchmarks/ranking.py --sizes 20k 100k --dims 512 2048

Every job runs in a process of its own, best of three (once, where it takes long). `memory` is what its peak adds to a
process that has loaded the features; features of more than 1 GiB stay on the disk and are mapped. Close other programs.
"""

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from reid import cli, nearest, plots, product, ranking, rerank, results  # noqa: E402
from reid.files import read_rows, write_rows  # noqa: E402
from reid.machine import cores, processor  # noqa: E402
from reid.problem import Problem  # noqa: E402
from reid.results import Features  # noqa: E402

TABLE = ROOT / 'results' / 'ranking.csv'
COLUMNS = 'machine job gallery queries dim seconds ratio memory_mb peak_mb note'.split()
SIZES = {'20k': 19732, '100k': 100_000, '500k': 519_732, '1m': 1_000_000}  # 500k: Market-1501 and its 500k distractors
MAPPED = 2**30  # bytes of features, above which they stay on the disk
PART = 256  # queries that are measured where all would take too long


def options():
    parser = cli.parser(__doc__)
    parser.add_argument(
        '--sizes', nargs='+', default=['20k', '100k', '1m'], choices=SIZES, help='of the gallery (default 20k 100k 1m)'
    )
    parser.add_argument('--dims', nargs='+', type=int, default=[512], help='lengths of features (default 512)')
    parser.add_argument('--jobs', nargs='+', default=list(JOBS), choices=JOBS, help='default: all that suit the size')
    parser.add_argument('--plot', action='store_true', help='draw results/ranking.png from what has been measured')
    parser.add_argument('--folder', help='for the features, which take up to 2 GB (default: the temporary folder)')
    parser.add_argument('--one', nargs=2, help=argparse.SUPPRESS)  # a job and its features, in a process of its own
    return parser


def main(opts):
    if opts.one:
        print(json.dumps(measure(*opts.one)))
        return
    machine = describe_machine()
    print(machine)
    for size in opts.sizes:
        for dim in opts.dims:
            with tempfile.TemporaryDirectory(dir=opts.folder) as folder:
                queries = 3368 if SIZES[size] < 10**6 else 1000
                path = draw(Path(folder) / 'features', queries, SIZES[size], dim)
                print(f'\n{queries:,} queries, gallery of {SIZES[size]:,}, {dim} numbers each')
                print(f'{"":22s} {"seconds":>9s} {"ratio":>8s} {"memory MB":>10s} {"peak MB":>8s}')
                rows, bare = [], {}
                for job in (job for job in JOBS if job in opts.jobs):  # the yardsticks come first
                    if size not in JOBS[job][1].split():
                        continue
                    row = run(job, path)
                    if row is None:
                        continue
                    yardstick = 'product of all' if job.startswith('rerank') or job == 'product of all' else 'product'
                    bare.setdefault(job, row['seconds'])
                    ratio = row['seconds'] / bare[yardstick] if yardstick in bare else float('nan')
                    shape = {'machine': machine, 'job': job, 'gallery': SIZES[size], 'queries': queries, 'dim': dim}
                    rows.append(shape | row | {'ratio': round(ratio, 2)})
                    said = '{job:22s} {seconds:9.2f} {ratio:8.2f} {memory_mb:10d} {peak_mb:8d}  {note}'
                    print(said.format(**rows[-1]), flush=True)
                keep(rows)
    if opts.plot:
        print(plot(machine))


def run(job, path):
    """Measure in a new process -> its row, or None where a package is missing."""
    done = subprocess.run([sys.executable, __file__, '--one', job, str(path)], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Problem(f'{job}: the process ended with code {done.returncode} (memory?)')
    row = json.loads(done.stdout.splitlines()[-1])
    if 'missing' in row:
        print(f'{job:22s} left out: {row["missing"]} is not installed')
        return None
    return row


def measure(job, path):
    work = JOBS[job][0]
    (query, gallery), _ = results.load(Path(path), 'query', 'gallery')
    if gallery.f.nbytes < MAPPED:
        query, gallery = (part._replace(f=np.array(part.f)) for part in (query, gallery))
    forget_peak()
    before, seconds, share, note = memory('VmRSS'), [], 1.0, ''
    while len(seconds) < 3 and sum(seconds) < 20:
        began = time.perf_counter()
        try:
            share = work(query, gallery) or 1.0
        except ModuleNotFoundError as error:
            return {'missing': error.name}
        seconds.append(time.perf_counter() - began)
    peak = memory('VmHWM')
    if share < 1:
        note = f'{share:.1%} of it was measured'
    return {
        'seconds': round(min(seconds) / share, 3),
        'memory_mb': round(peak - before),
        'peak_mb': round(peak),
        'note': note,
    }


def memory(name):
    """MB that this process takes (VmRSS) or has taken at most (VmHWM), pages of mapped files among them."""
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**10
    except OSError:  # no Linux: at most, so far; Windows has no such figure
        try:
            import resource
        except ModuleNotFoundError:
            return 0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == 'darwin' else 2**10)


def forget_peak():
    """Loading takes memory as well, but is not what is measured."""
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')


# ---------------------------------------------------------------------------------------------------------------------
# 1. jobs: (query, gallery) -> None, or the share of the work that was done


def bare_product(query, gallery):
    multiply(query.f, gallery.f)


def product_of_all(query, gallery):
    """(Q + G)^2, which re-ranking has to look at."""
    n = len(query.f) + len(gallery.f)
    rows = gallery.f[: min(n, 2560)]
    multiply(rows, gallery.f)
    return len(rows) * len(gallery.f) / n**2


def multiply(query_f, gallery_f):
    tile = product.SCORES // 256
    for first in range(0, len(gallery_f), tile):
        part = np.ascontiguousarray(gallery_f[first : first + tile], np.float32)
        for start in range(0, len(query_f), 256):
            query_f[start : start + 256] @ part.T


def evaluate(query, gallery):
    ranking.evaluate(query, gallery)


def by_sorting(query, gallery):
    """The usual way in numpy: sort each row of scores, look where the good images are."""
    found, part = [], min(len(query.f), 4 * PART)
    for start in range(0, part, 64):
        scores = query.f[start : start + 64] @ gallery.f.T
        for i, order in enumerate(np.argsort(-scores, axis=1), start):
            good, junk = ranking.judge(query.ids[i], query.cams[i], gallery.ids[order], gallery.cams[order])
            found.append(np.flatnonzero(good[~junk]))
    ranking.figures(found)
    return part / len(query.f)


def by_loops(query, gallery):
    """One query after the other in plain Python, as it is taught."""
    part = min(len(query.f), PART)
    for i in range(part):
        scores = gallery.f @ query.f[i]
        precision, found = 0.0, 0
        rank = 0
        for j in np.argsort(-scores).tolist():
            if gallery.ids[j] == -1 or (gallery.ids[j] == query.ids[i] and gallery.cams[j] == query.cams[i]):
                continue
            rank += 1
            if gallery.ids[j] == query.ids[i]:
                found += 1
                precision += found / rank
    return part / len(query.f)


def ten_nearest(query, gallery):
    nearest.nearest(query.f, gallery.f, 10)


def ten_nearest_by_faiss(query, gallery):
    """The search alone, from the second time on: the index, a copy of the features, is made at the first."""
    import faiss

    if not INDEX:
        INDEX.append(faiss.IndexFlatIP(gallery.f.shape[1]))
        INDEX[0].add(np.ascontiguousarray(gallery.f))
    INDEX[0].search(np.ascontiguousarray(query.f), 10)


INDEX = []


def sparse_rerank(query, gallery):
    ranking.figures(ranking.ranks_in(rerank.rerank(query.f, gallery.f), query, gallery))


def dense_rerank(query, gallery, k1=20, k2=6, lambda_value=0.3):
    """arXiv 1701.08398 with full matrices, as it is usually written."""
    f = np.concatenate([query.f, gallery.f])
    n, Q = len(f), len(query.f)
    original = (2 - 2 * (f @ f.T)) ** 2
    original /= original.max(1, keepdims=True)
    order = np.argsort(original, axis=1)[:, : k1 + 1].copy()
    V = np.zeros((n, n), np.float32)

    def mutual(i, k):
        near = order[i, : k + 1]
        return near[(order[near, : k + 1] == i).any(1)]

    for i in range(n):
        base = mutual(i, k1)
        grown = [base]
        for j in base:
            candidate = mutual(j, k1 // 2)
            if len(np.intersect1d(candidate, base)) > 2 / 3 * len(candidate):
                grown.append(candidate)
        grown = np.unique(np.concatenate(grown))
        weight = np.exp(-original[i, grown])
        V[i, grown] = weight / weight.sum()
    original = original[:Q, Q:].copy()
    V = np.stack([V[order[i, :k2]].mean(0) for i in range(n)])
    having = [np.flatnonzero(V[:, j]) for j in range(n)]
    scores = np.empty((Q, n - Q), np.float32)
    for i in range(Q):
        least = np.zeros(n, np.float32)
        for j in np.flatnonzero(V[i]):
            least[having[j]] += np.minimum(V[i, j], V[having[j], j])
        jaccard = 1 - least / (2 - least)
        scores[i] = -(jaccard[Q:] * (1 - lambda_value) + original[i] * lambda_value)
    ranking.figures(ranking.ranks_in([(0, scores)], query, gallery))


JOBS = {  # name: (work, the sizes that it suits)
    'product': (bare_product, '20k 100k 500k 1m'),
    'evaluate': (evaluate, '20k 100k 500k 1m'),
    'by sorting': (by_sorting, '20k 100k 1m'),
    'by plain loops': (by_loops, '20k 100k'),
    'ten nearest': (ten_nearest, '20k 100k 500k 1m'),
    'ten nearest, faiss': (ten_nearest_by_faiss, '20k 100k 1m'),
    'product of all': (product_of_all, '20k 100k 500k'),
    'rerank': (sparse_rerank, '20k 100k 500k'),
    'rerank, dense': (dense_rerank, '20k'),
}

# ---------------------------------------------------------------------------------------------------------------------
# 2. features


def draw(path, queries, size, dim, seed=0):
    """Features like those of a network on Market-1501, saved as a result: 750 people seen by 4 or 5 of 6 cameras, false
    detections, and distractors in groups of six. Identities lie in 60 groups that look alike."""
    rng = np.random.default_rng(seed)
    inner = 64  # dimensions that the features really use
    spread = np.arange(1, inner + 1) ** -0.5
    outer = np.linalg.qr(rng.standard_normal((dim, inner)))[0].T
    groups = rng.standard_normal((60, inner)) * spread
    cameras = rng.standard_normal((6, inner)) * spread * 0.35

    def people(n):
        return 0.7 * groups[rng.integers(0, 60, n)] + 0.7 * rng.standard_normal((n, inner)) * spread

    def pictures(who, cams):
        blur = np.clip(rng.lognormal(0, 0.35, (len(who), 1)), 0.4, 3)
        f = (who + cameras[cams] + blur * rng.standard_normal((len(who), inner)) * spread) @ outer
        f += 0.02 * (512 / dim) ** 0.5 * rng.standard_normal(f.shape)
        return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)

    many = min(750, size // 10)
    cameras_of = [5 if i < 368 else 4 for i in range(many)]  # 3,368 queries, if there are 750 people
    seen = np.concatenate([rng.permutation(6)[:n] for n in cameras_of])
    who = np.repeat(np.arange(many), cameras_of)
    known, false = int(0.66 * min(size, 19732)), int(0.19 * min(size, 19732))
    pick = np.concatenate([np.arange(len(who)), rng.integers(0, len(who), known - len(who))])
    groups_of_six = people((size - known - false) // 6 + 1)
    centres = people(many)
    rest = np.repeat(groups_of_six, 6, axis=0)[: size - known - false]
    ids = np.concatenate([who[pick] + 1, np.full(false, -1), np.zeros(len(rest), int)])
    cams = np.concatenate([seen[pick], rng.integers(0, 6, false + len(rest))])
    centre = np.concatenate([centres[who[pick]], people(false), rest])
    order = rng.permutation(size)
    ids, cams, centre = ids[order], cams[order], centre[order]
    f = np.lib.format.open_memmap(path.with_name('drawn.npy'), 'w+', np.float32, (size, dim))
    for start in range(0, size, 20000):
        s = slice(start, start + 20000)
        f[s] = pictures(centre[s], cams[s])
    query = Features(pictures(centres[who], seen)[:queries], who[:queries] + 1, seen[:queries] + 1, None)
    results.save_arrays(path, {}, {'query': query, 'gallery': Features(f, ids, cams + 1, None)})
    return path


# ---------------------------------------------------------------------------------------------------------------------
# 3. the table


def describe_machine():
    return (
        f'{processor()}, {cores()} cores, {platform.system()}, '
        f'torch {torch.__version__.split("+")[0]}, numpy {np.__version__}'
    )


def keep(rows):
    """Put rows into the table, in the place of those of the same machine, job and sizes."""

    def key(row):
        return tuple(str(row[name]) for name in ('machine', 'job', 'gallery', 'queries', 'dim'))

    new = {key(row) for row in rows}
    TABLE.parent.mkdir(exist_ok=True)
    old = [row for row in read_rows(TABLE) if key(row) not in new]
    write_rows(TABLE, COLUMNS, old + rows)


def plot(machine):
    rows = [row for row in read_rows(TABLE) if row['machine'] == machine and row['dim'] == '512']
    if not rows:
        raise Problem(f'{TABLE} holds nothing of this machine at 512 numbers: measure first')
    path = TABLE.with_suffix('.png')
    thousand, whole = '1,000 queries', 're-ranking, all of it'
    panels = {thousand: {}, whole: {}}
    for row in sorted(rows, key=lambda row: list(JOBS).index(row['job'])):
        heading = whole if row['job'].startswith('rerank') or row['job'] == 'product of all' else thousand
        seconds = float(row['seconds']) * (1000 / int(row['queries']) if heading == thousand else 1)
        panels[heading].setdefault(row['job'], []).append((int(row['gallery']), seconds))
    plots.costs({heading: lines for heading, lines in panels.items() if lines}, machine, path)
    return path


if __name__ == '__main__':
    cli.start(main, options)
