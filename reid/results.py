"""What test.py hands on: pytorch_result.mat (and multi_query.mat), readable by MATLAB and by the older baselines.

    gallery_f (Ng, D) float32, rows of unit length;  gallery_label, gallery_cam (1, Ng) int64;  the same for query_*
    gallery_path, query_path: the pictures, relative to the tree
    data_dir, which_epoch, ms, no_flip: where the tree was, and how test.py was told to make the features
    mquery_f, mquery_label, mquery_cam in multi_query.mat

A MATLAB 5 file cannot hold a variable of 4 GiB: there the same keys go to pytorch_result.npz.
"""

import json
from collections import namedtuple
from pathlib import Path

import numpy as np
from scipy.io import loadmat, savemat

from reid import ranking
from reid.files import replacing
from reid.problem import Problem

TEXTS = ('data_dir', 'which_epoch', 'ms', 'no_flip')
LIMIT = 2**32 - 2**20  # bytes of one variable, with room for its header

# f (N, D) float32, ids (N,), cams (N,), paths: a list of N strings or None where they are not known
Features = namedtuple('Features', 'f ids cams paths')


def save(folder, stem, about, **parts):
    """Write folder/stem.mat from parts such as query=Features(...) and the texts of `about`. Returns the path."""
    content = dict(about)
    for part, features in parts.items():
        content |= {f'{part}_f': features.f, f'{part}_label': features.ids[None], f'{part}_cam': features.cams[None]}
        content |= {f'{part}_path': np.array(features.paths, dtype=object)}
    large = max(features.f.nbytes for features in parts.values()) >= LIMIT
    path, other = (folder / f'{stem}{suffix}' for suffix in (('.npz', '.mat') if large else ('.mat', '.npz')))
    with replacing(path) as temporary, temporary.open('wb') as file:
        if large:
            print(f'features of 4 GiB or more do not fit into a .mat file: writing {path.name}')
            texts = {name: value.astype(str) for name, value in content.items() if name.endswith('_path')}
            np.savez(file, **content | texts)
        else:
            savemat(file, content)
    other.unlink(missing_ok=True)  # of an earlier test: one result a run
    return path


def find(folder, stem='pytorch_result'):
    """folder/stem.mat or .npz, whichever is there, else None."""
    return next((path for path in (folder / f'{stem}.mat', folder / f'{stem}.npz') if path.is_file()), None)


def load(path, *parts):
    """Read parts such as 'query', 'gallery' of a result -> a list of Features, and the dict `about` of its texts."""
    path = Path(path)
    if not path.is_file():
        raise Problem(f'{path}: there is no such file. python test.py --name NAME writes one')
    try:
        if path.suffix == '.npz':
            with np.load(path, allow_pickle=False) as file:
                content = dict(file)
        else:
            content = loadmat(path)
    except Exception as error:  # what scipy raises on bytes that are no such file is not to be foreseen
        raise Problem(f'{path} cannot be read as a result ({error})') from None

    out = []
    for part in parts:
        missing = [key for key in (f'{part}_f', f'{part}_label', f'{part}_cam') if key not in content]
        if missing:
            there = ', '.join(key for key in content if not key.startswith('__'))
            raise Problem(f'{path}: {", ".join(missing)} expected, found {there or "nothing"}')
        f = np.ascontiguousarray(content[f'{part}_f'], np.float32)
        ids, cams = (content[f'{part}_{key}'].ravel().astype(np.int64) for key in ('label', 'cam'))
        if not (f.ndim == 2 and len(f) == len(ids) == len(cams)):
            raise Problem(f'{path}: {part}_f is {f.shape}, with {len(ids)} labels and {len(cams)} cameras')
        paths = [np.asarray(p).item() for p in content[f'{part}_path'].ravel()] if f'{part}_path' in content else None
        out.append(Features(f, ids, cams, paths))
    if len({features.f.shape[1] for features in out}) > 1:
        raise Problem(f'{path}: {" and ".join(f"{p}_f" for p in parts)} differ in the length of their features')
    texts = {key: np.asarray(content[key]).ravel() for key in TEXTS if key in content}
    return out, {key: str(value[0]) for key, value in texts.items() if value.size}


# ---------------------------------------------------------------------------------------------------------------------
# the figures: a line to read, and metrics.json for everything that compares runs


def evaluate(path, device):
    """Print and record the figures of a result, and of the multi_query.mat that belongs to it if there is one."""
    (query, gallery), _ = load(path, 'query', 'gallery')
    figures = ranking.evaluate(query, gallery, device)
    print(line(figures))
    without = figures['queries_without_good']
    print(f'{figures["queries"]} queries, {without} of them without a good image; {len(gallery.f)} gallery images')
    record(path, line(figures), **figures)

    pool = find(path.parent, 'multi_query') if path.stem == 'pytorch_result' else None
    if pool is not None:
        (pool,), _ = load(pool, 'mquery')
        if pool.f.shape[1] != query.f.shape[1]:
            raise Problem(f'{path.parent}/multi_query holds features of another network: run test.py --multi again')
        multi = ranking.evaluate(ranking.multi_query(query, pool), gallery, device)
        print(f'multi {line(multi)}')
        record(path, f'multi {line(multi)}', multi=multi)
    return figures


def line(figures):
    """The figures in one line. Both average precisions, by name."""
    return (
        'Rank@1:{rank1:.6f} Rank@5:{rank5:.6f} Rank@10:{rank10:.6f} mAP:{map_trapezoid:.6f} (trapezoid) '
        'mAP:{map_standard:.6f} (standard) mINP:{minp:.6f}'
    ).format(**figures)


def record(result, text, **figures):
    """Append text to result.txt and merge the figures into metrics.json, both beside the result file.

    A result of another name than pytorch_result has files of its own: the folder may be that of a run.
    """
    before = '' if result.stem == 'pytorch_result' else f'{result.stem}.'
    path = result.with_name(f'{before}metrics.json')
    try:
        with result.with_name(f'{before}result.txt').open('a', encoding='utf-8') as file:
            file.write(text + '\n')
        current = path.is_file() and path.stat().st_mtime >= result.stat().st_mtime  # else it is of an older result
        old = json.loads(path.read_text(encoding='utf-8')) if current else {}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(old | figures, indent=2) + '\n', encoding='utf-8')
    except (OSError, ValueError, TypeError) as error:  # a folder that is not ours to write to, a file that was edited
        print(f'{path} and result.txt could not be written ({error})')
